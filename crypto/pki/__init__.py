"""Identity: the pinned root, requests, credentials, revocation, TLS certificates, and the folders of members.

All of it is public material or the holder's own signing and TLS keys. Decryption keys are in ``site_keys``
alone, which only sites import.
"""
