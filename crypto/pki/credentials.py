"""Credentials: what the root says about a member. The record binds the signing and sealing key to the same
identity as the TLS certificate inside it; both carry one serial number, which a status list may revoke."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509

from cipherward.crypto.labels import Label
from cipherward.crypto.pki import tls
from cipherward.crypto.pki.anchor import Anchor
from cipherward.crypto.pki.requests import check_sealing_key, key_fingerprint, read_role
from cipherward.crypto.pki.status_list import RevocationSource
from cipherward.crypto.signing import KEY_BYTES
from cipherward.errors import FormatError, IdentityError
from cipherward.ids import Digest, Identity, Role
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.identity_pb2 import Credential as CredentialRecord


@dataclass(frozen=True, slots=True, eq=False)
class Credential:
    """A credential that the root signed. Whether it is in force is ``check``'s to say."""

    identity: Identity
    signing_key: bytes
    sealing_key: bytes
    """Empty unless a site's."""
    certificate: x509.Certificate
    tls_key_digest: Digest
    serial: int
    issued_at: int
    expires_at: int
    signed: Signed

    @property
    def fingerprint(self) -> Digest:
        """Of name, role and keys; the same as the request's."""
        return key_fingerprint(self.identity, self.signing_key, self.sealing_key, self.tls_key_digest)

    def days_left(self, now: float) -> int:
        """Whole days until it expires; negative afterwards."""
        return int((self.expires_at - now) // 86_400)

    def check(self, now: float, revocations: RevocationSource) -> None:
        """Raises IdentityError if it is not valid at ``now`` (Unix seconds), or revoked."""
        tls.check_time(self.certificate, now, str(self.identity))
        revocations.check(self.serial, str(self.identity))

    @property
    def expiry(self) -> str:
        """The day it expires, for people."""
        return f"{datetime.fromtimestamp(self.expires_at, UTC):%Y-%m-%d}"


def read_credential(signed: Signed, anchor: Anchor) -> Credential:
    """Check the root's signatures on record and certificate, and that both say the same.

    Raises VerificationError, FormatError or IdentityError. Expiry and revocation are checked by
    ``Credential.check`` at each use.
    """
    record = anchor.verify(signed, Label.CREDENTIAL, CredentialRecord)
    anchor.require_consortium(record.consortium, "credential")
    identity = Identity.make(record.consortium, read_role(record.role), record.name)
    if len(record.signing_key) != KEY_BYTES:
        raise FormatError(f"a signing key has {len(record.signing_key)} bytes", why=f"a key has {KEY_BYTES}")
    check_sealing_key(identity.role, record.sealing_key)
    certificate = tls.load_certificate(record.tls_certificate)
    same = (
        tls.check_leaf(certificate, anchor.root) == identity
        and certificate.serial_number == record.serial
        and int(certificate.not_valid_after_utc.timestamp()) == record.expires_at
        and record.issued_at < record.expires_at
    )
    if not same:
        raise IdentityError(f"the credential of {identity} and the certificate in it differ")
    return Credential(
        identity=identity,
        signing_key=record.signing_key,
        sealing_key=record.sealing_key,
        certificate=certificate,
        tls_key_digest=tls.certificate_key_digest(certificate),
        serial=record.serial,
        issued_at=record.issued_at,
        expires_at=record.expires_at,
        signed=signed,
    )


def verify_credential(
    signed: Signed, anchor: Anchor, now: float, revocations: RevocationSource, role: Role
) -> Credential:
    """A credential in force, of a member with that role; raises VerificationError or IdentityError."""
    credential = read_credential(signed, anchor)
    if credential.identity.role is not role:
        raise IdentityError(
            f"the credential of {credential.identity} does not count here",
            why=f"only a credential with the role {role.value} does",
        )
    credential.check(now, revocations)
    return credential
