"""The consortium's private root: an Ed25519 key for records and a P-256 key for TLS certificates, kept
offline in one file under a passphrase.

The file is not PKCS#8: the library writes that with PBKDF2 of 2,048 rounds and without authentication. Here
it is scrypt (RFC 7914, N = 2^17, r = 8, p = 1: 128 MiB of memory, under a second) and AES-256-GCM.
"""

from __future__ import annotations

import os
from typing import NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from google.protobuf.message import Message

from cipherward.crypto.labels import Label, framed
from cipherward.crypto.pki import tls
from cipherward.crypto.pki.anchor import Anchor
from cipherward.crypto.pki.armour import ROOT_SIGNER, Kind, armour, unarmour
from cipherward.crypto.signing import KEY_BYTES, SigningKey
from cipherward.errors import FormatError, UsageError, VerificationError
from cipherward.ids import check_name
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.identity_pb2 import Anchor as AnchorRecord

MIN_PASSPHRASE = 12
"""Characters. The file is backed up in several places; the passphrase is all that protects a stolen copy."""

_VERSION = b"\x01"
_SALT, _NONCE = 16, 12
_LOG2_N, _R, _P = 17, 8, 1


def _file_key(passphrase: str, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=32, n=2**_LOG2_N, r=_R, p=_P).derive(passphrase.encode())


def check_passphrase(passphrase: str) -> None:
    """Raises UsageError for one that is too short."""
    if len(passphrase) < MIN_PASSPHRASE:
        raise UsageError(
            f"the passphrase has {len(passphrase)} characters",
            why=f"it protects every backup of the root key and needs at least {MIN_PASSPHRASE}",
            fix="Choose a longer one, such as five random words",
        )


class RootKey:
    """What signs for the consortium. No repr of its content, no pickle."""

    __slots__ = ("_signing", "_tls")

    def __init__(self, signing: SigningKey, tls_key: ec.EllipticCurvePrivateKey) -> None:
        self._signing, self._tls = signing, tls_key

    @classmethod
    def generate(cls) -> RootKey:
        """Fresh keys from the operating system's generator."""
        return cls(SigningKey.generate(), tls.new_key())

    @classmethod
    def from_text(cls, text: bytes, passphrase: str) -> RootKey:
        """From the encrypted file; raises FormatError, or VerificationError for a wrong passphrase."""
        content = unarmour(Kind.ROOT_KEY, text)
        salt, rest = content[1 : 1 + _SALT], content[1 + _SALT :]
        if content[:1] != _VERSION or len(rest) < _NONCE + 16:
            raise FormatError("the root key file is damaged or of a newer version")
        try:
            secret = AESGCM(_file_key(passphrase, salt)).decrypt(
                rest[:_NONCE], rest[_NONCE:], framed(Label.ROOT_KEY, _VERSION)
            )
        except InvalidTag as error:
            raise VerificationError(
                "the root key does not open",
                why="the passphrase is wrong or the file was changed",
                fix="Try again, or use a backup",
            ) from error
        return cls(SigningKey.from_bytes(secret[:KEY_BYTES]), tls.key_from_pem(secret[KEY_BYTES:]))

    def to_text(self, passphrase: str) -> bytes:
        """The encrypted file, for ``durable.write_secret``; raises UsageError for a short passphrase."""
        check_passphrase(passphrase)
        salt, nonce = os.urandom(_SALT), os.urandom(_NONCE)
        secret = self._signing.to_bytes() + tls.key_to_pem(self._tls)
        sealed = AESGCM(_file_key(passphrase, salt)).encrypt(nonce, secret, framed(Label.ROOT_KEY, _VERSION))
        return armour(Kind.ROOT_KEY, _VERSION + salt + nonce + sealed)

    def make_anchor(self, consortium: str, now: float) -> Anchor:
        """The public half, self-signed. Each call makes another root certificate: call it once."""
        check_name(consortium, "consortium")
        record = AnchorRecord(
            consortium=consortium,
            root_certificate=tls.make_root_certificate(consortium, self._tls, now, tls.new_serial()),
            signing_key=self._signing.public(),
            created_at=int(now),
        )
        return Anchor.from_signed(self.sign(Label.ANCHOR, record))

    def sign(self, label: Label, message: Message) -> Signed:
        """Sign for the consortium."""
        return self._signing.sign(label, message, ROOT_SIGNER)

    @property
    def tls_key(self) -> ec.EllipticCurvePrivateKey:
        """Signs TLS certificates, by ``tls.issue_certificate`` only."""
        return self._tls

    def require_anchor(self, anchor: Anchor) -> None:
        """Raises VerificationError unless ``anchor`` is this key's public half."""
        if anchor.signing_key != self._signing.public() or anchor.root.public_key() != self._tls.public_key():
            raise VerificationError(
                "root.key and anchor.pem do not belong together",
                why="they are of different consortia or backups",
                fix="Restore both files from the same backup",
            )

    def __repr__(self) -> str:
        return "RootKey(OMITTED)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a root key does not pickle")
