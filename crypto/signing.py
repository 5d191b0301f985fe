"""Ed25519 signatures over labelled bytes (RFC 8032), and the ``Signed`` envelope they travel in."""

from __future__ import annotations

from typing import NoReturn, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from google.protobuf.message import DecodeError, Message

from cipherward.crypto.labels import Label, digest, framed
from cipherward.errors import FormatError, VerificationError
from cipherward.ids import Digest
from cipherward.proto.v1.common_pb2 import Signed

KEY_BYTES = 32
SIGNATURE_BYTES = 64
MAX_RECORD_BYTES = 8 * 2**20
"""Largest signed record accepted: a plan or close record of 1,000 quorum sites is about 2 MiB."""

M = TypeVar("M", bound=Message)


class SigningKey:
    """A member's Ed25519 private key. Has no repr of its content and does not pickle."""

    __slots__ = ("_key",)

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def generate(cls) -> SigningKey:
        """A fresh key from the operating system's generator."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_bytes(cls, seed: bytes) -> SigningKey:
        """From the 32-byte seed, as ``to_bytes`` gave it."""
        if len(seed) != KEY_BYTES:
            raise FormatError(f"a signing key file has {len(seed)} bytes", why=f"a key has {KEY_BYTES}")
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    def to_bytes(self) -> bytes:
        """The 32-byte secret seed, for ``durable.write_secret`` only."""
        return self._key.private_bytes_raw()

    def public(self) -> bytes:
        """The public key, 32 bytes."""
        return self._key.public_key().public_bytes_raw()

    def sign(self, label: Label, message: Message, signer: str) -> Signed:
        """Serialise ``message`` once and sign those bytes under ``label``."""
        payload = message.SerializeToString(deterministic=True)
        return Signed(payload=payload, signer=signer, signature=self._key.sign(framed(label, payload)))

    def __repr__(self) -> str:
        return "SigningKey(OMITTED)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a signing key does not pickle")


def verify(signed: Signed, label: Label, public_key: bytes, message_type: type[M]) -> M:
    """The message inside ``signed``, if ``public_key`` signed it under ``label``.

    The signature is checked before the payload is parsed. Raises VerificationError, or FormatError for bytes
    that are validly signed but not a ``message_type``.
    """
    what = label.value.rpartition("/")[2].replace("-", " ")
    if len(signed.payload) > MAX_RECORD_BYTES:
        raise FormatError(f"a {what} has {len(signed.payload)} bytes", why=f"the limit is {MAX_RECORD_BYTES}")
    try:
        key = Ed25519PublicKey.from_public_bytes(public_key)
        key.verify(signed.signature, framed(label, signed.payload))
    except (InvalidSignature, ValueError) as error:
        raise VerificationError(
            f"the signature on a {what} from {signed.signer[:120]!r} does not hold",
            why="it was changed on the way, or another key signed it",
        ) from error
    return parse(signed.payload, message_type, what)


def parse(payload: bytes, message_type: type[M], what: str) -> M:
    """Decode protobuf bytes; raises FormatError. Fields that this version does not know are refused: a signed
    record must not carry meaning that its reader cannot see."""
    message = message_type()
    try:
        message.ParseFromString(payload)
    except (DecodeError, ValueError) as error:
        raise FormatError(f"a {what} cannot be read", why="its bytes are not in the agreed format") from error
    # Unknown fields survive in a reserialisation; discarding them shortens it.
    before = message.ByteSize()
    message.DiscardUnknownFields()
    if message.ByteSize() != before:
        raise FormatError(
            f"a {what} has fields unknown to this version",
            fix="Update Cipherward to the version that the sender runs",
        )
    return message


def signer_name(signed: Signed) -> str:
    """The name in the identity that a record claims for its signer. Nothing is checked: ``verify`` it with that
    member's key."""
    return signed.signer.rpartition("/")[2]


def record_digest(label: Label, signed: Signed) -> Digest:
    """What other records name this one by: the digest of the signed payload."""
    return digest(label, signed.payload)
