"""The shared-key suite: CKKS by Microsoft SEAL (through TenSEAL), one secret key held by every site.

What it gives: the coordinator adds ciphertexts that it cannot open. What it does not: any one site together
with the coordinator can open every update, and a decrypted sum given to the coordinator gives it the key
(Li and Micciancio, Eurocrypt 2021); so neither keys nor opened sums ever go there.
"""
