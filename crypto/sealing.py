"""HPKE (RFC 9180) with ML-KEM-768 + X25519, HKDF-SHA256, AES-256-GCM: what only one receiver can open.

HPKE in base mode does not authenticate the sender: everything sealed here also stands under a signature that
the receiver checks first. This module can hold decryption keys, so the coordinator does not import it.
"""

from __future__ import annotations

from typing import NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    Suite,
)

from cipherward.crypto import seal_sizes
from cipherward.crypto.labels import Label, framed
from cipherward.crypto.sealing_keys import check_public
from cipherward.errors import FormatError, VerificationError

PUBLIC_BYTES, OVERHEAD = seal_sizes.PUBLIC_BYTES, seal_sizes.OVERHEAD
SECRET_BYTES = 64 + 32

_SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


def seal(public: bytes, plaintext: bytes, label: Label, *context: bytes) -> bytes:
    """Encrypt to ``public``; ``label`` and ``context`` go into HPKE's info and must be the same to open.

    FormatError for a public key that is none (``sealing_keys.check_public``).
    """
    return _SUITE.encrypt(plaintext, check_public(public), info=framed(label, *context))


class SealingKey:
    """An HPKE private key (long-term, or of one round). No repr of its content, no pickle.

    The library has no serialiser for the pair: a file holds the ML-KEM seed (64 B) and X25519 key (32 B).
    """

    __slots__ = ("_mlkem", "_pair", "_x25519")

    def __init__(self, mlkem: MLKEM768PrivateKey, x25519: X25519PrivateKey) -> None:
        self._mlkem, self._x25519 = mlkem, x25519
        self._pair = MLKEM768X25519PrivateKey(mlkem, x25519)

    @classmethod
    def generate(cls) -> SealingKey:
        """A fresh key from the operating system's generator."""
        return cls(MLKEM768PrivateKey.generate(), X25519PrivateKey.generate())

    @classmethod
    def from_bytes(cls, secret: bytes) -> SealingKey:
        """From ``to_bytes``."""
        if len(secret) != SECRET_BYTES:
            raise FormatError(
                f"a sealing key file has {len(secret)} bytes", why=f"it must have {SECRET_BYTES}"
            )
        return cls(
            MLKEM768PrivateKey.from_seed_bytes(secret[:64]), X25519PrivateKey.from_private_bytes(secret[64:])
        )

    def to_bytes(self) -> bytes:
        """The 96 secret bytes, for ``durable.write_secret`` only."""
        return self._mlkem.private_bytes_raw() + self._x25519.private_bytes_raw()

    def public(self) -> bytes:
        """The public key, 1216 bytes."""
        return self._mlkem.public_key().public_bytes_raw() + self._x25519.public_key().public_bytes_raw()

    def open(self, sealed: bytes, label: Label, *context: bytes) -> bytes:
        """Decrypt; raises VerificationError if it was changed, is for another key, or for another purpose."""
        try:
            return _SUITE.decrypt(sealed, self._pair, info=framed(label, *context))
        except (InvalidTag, ValueError) as error:
            raise VerificationError(
                "a sealed message does not open", why="it was changed, or sealed for another key or purpose"
            ) from error

    def __repr__(self) -> str:
        return "SealingKey(OMITTED)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a sealing key does not pickle")
