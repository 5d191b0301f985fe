"""Sizes of HPKE keys and seals (ML-KEM-768 + X25519, AES-256-GCM). They stand here because who only checks
sizes, as the coordinator does, must not import ``crypto.sealing``, which holds keys."""

from __future__ import annotations

PUBLIC_BYTES = 1184 + 32
"""ML-KEM-768 || X25519."""
OVERHEAD = 1088 + 32 + 16
"""Bytes that a seal adds: the KEM's ciphertext (ML-KEM-768 and X25519) and the AEAD's tag."""
