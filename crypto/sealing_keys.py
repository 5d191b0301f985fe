"""Public HPKE keys (ML-KEM-768 || X25519) that somebody else made. No key code: the coordinator checks them too, so
that a site that joins with a key to which nobody can seal is refused, and does not stop those who would seal to it.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import MLKEM768X25519PublicKey

from cipherward.crypto.seal_sizes import PUBLIC_BYTES
from cipherward.errors import FormatError

_MLKEM_BYTES = 1184
_ANY = X25519PrivateKey.from_private_bytes(bytes(32))
"""No secret. Scalars are multiples of the cofactor, so that all of them take exactly the points of small order to
zero (RFC 7748, section 6.1), and the library refuses to."""


def check_public(public: bytes) -> MLKEM768X25519PublicKey:
    """Parse ML-KEM-768 (1184 bytes) || X25519 (32 bytes); FormatError for what nothing can be sealed to: another
    size, ML-KEM coefficients that are not reduced (FIPS 203, section 7.2), an X25519 point of small order."""
    if len(public) != PUBLIC_BYTES:
        raise FormatError(f"a sealing key has {len(public)} bytes", why=f"it must have {PUBLIC_BYTES}")
    try:
        x25519 = X25519PublicKey.from_public_bytes(public[_MLKEM_BYTES:])
        _ANY.exchange(x25519)
        return MLKEM768X25519PublicKey(MLKEM768PublicKey.from_public_bytes(public[:_MLKEM_BYTES]), x25519)
    except ValueError as error:
        raise FormatError("a sealing key is not a valid ML-KEM-768 and X25519 key") from error
