"""The trust anchor: the consortium's public root, pinned by everybody after comparing its fingerprint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from cryptography import x509
from google.protobuf.message import Message

from cipherward.crypto.labels import Label
from cipherward.crypto.pki.armour import ROOT_SIGNER, Kind, armour_signed, unarmour_signed
from cipherward.crypto.pki.tls import check_root, to_pem
from cipherward.crypto.signing import KEY_BYTES, parse, record_digest, verify
from cipherward.errors import FormatError, VerificationError
from cipherward.ids import ConsortiumName, Digest, check_name
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.identity_pb2 import Anchor as AnchorRecord

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True, eq=False)
class Anchor:
    """A consortium's root, public half. Whoever holds the right one needs to trust nothing else."""

    consortium: ConsortiumName
    signing_key: bytes
    """Ed25519, 32 bytes: signs credentials, manifests and status lists."""
    root: x509.Certificate
    """Signs TLS certificates."""
    signed: Signed
    """As it travels: self-signed, so that no part of it can be exchanged."""

    @classmethod
    def from_signed(cls, signed: Signed) -> Anchor:
        """Check its structure and its own signature; raises FormatError or VerificationError.

        That it is the right one, only its fingerprint says.
        """
        record = parse(signed.payload, AnchorRecord, "anchor")
        check_name(record.consortium, "consortium")
        if signed.signer != ROOT_SIGNER or len(record.signing_key) != KEY_BYTES:
            raise FormatError("an anchor does not have the agreed structure")
        verify(signed, Label.ANCHOR, record.signing_key, AnchorRecord)
        root = check_root(record.root_certificate, record.consortium)
        return cls(ConsortiumName(record.consortium), record.signing_key, root, signed)

    @classmethod
    def from_text(cls, text: bytes) -> Anchor:
        """From an armoured file; raises FormatError or VerificationError."""
        return cls.from_signed(unarmour_signed(Kind.ANCHOR, text))

    def to_text(self) -> bytes:
        """The armoured file, ``anchor.pem``."""
        return armour_signed(Kind.ANCHOR, self.signed)

    @property
    def fingerprint(self) -> Digest:
        """What people compare out of band."""
        return record_digest(Label.ANCHOR, self.signed)

    @property
    def root_pem(self) -> bytes:
        """The root certificate for TLS."""
        return to_pem(self.root)

    def verify(self, signed: Signed, label: Label, message_type: type[M]) -> M:
        """The message that this root signed; raises VerificationError."""
        if signed.signer != ROOT_SIGNER:
            raise VerificationError(
                f"a {label.value.rpartition('/')[2].replace('-', ' ')} is signed by {signed.signer[:120]!r}",
                why="only the consortium's root may sign it",
            )
        return verify(signed, label, self.signing_key, message_type)

    def require_consortium(self, consortium: str, what: str) -> None:
        """Raises VerificationError if a record of the same root names another consortium."""
        if consortium != self.consortium:
            raise VerificationError(
                f"a {what} is of consortium {consortium[:80]!r}", why=f"this is {self.consortium}"
            )
