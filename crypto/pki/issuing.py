"""What the consortium's root issues: credentials for verified requests, and status lists."""

from __future__ import annotations

from collections.abc import Iterable

from cipherward.crypto.labels import Label
from cipherward.crypto.pki import tls
from cipherward.crypto.pki.anchor import Anchor
from cipherward.crypto.pki.credentials import Credential, read_credential
from cipherward.crypto.pki.requests import ROLES, Request
from cipherward.crypto.pki.root_key import RootKey
from cipherward.crypto.pki.status_list import StatusList, verify_status_list
from cipherward.errors import IdentityError, UsageError
from cipherward.proto.v1.identity_pb2 import Credential as CredentialRecord
from cipherward.proto.v1.identity_pb2 import Revocation
from cipherward.proto.v1.identity_pb2 import StatusList as StatusListRecord

MAX_DAYS = 825
"""Longest life of a credential."""


def issue_credential(root: RootKey, anchor: Anchor, request: Request, *, days: int, now: float) -> Credential:
    """A credential of ``days`` days from ``now`` (Unix seconds), with a fresh serial number.

    Raises IdentityError for a request to another consortium, UsageError for a lifetime out of range.
    """
    if request.identity.consortium != anchor.consortium:
        raise IdentityError(
            f"a request is for consortium {request.identity.consortium}", why=f"this is {anchor.consortium}"
        )
    issued_at = int(now)
    expires_at = issued_at + days * 86_400
    if not 1 <= days <= MAX_DAYS or expires_at > anchor.root.not_valid_after_utc.timestamp():
        raise UsageError(
            f"a credential cannot be valid for {days} days",
            why=f"1 to {MAX_DAYS} are allowed, and none beyond the root's own certificate, which ends "
            f"{anchor.root.not_valid_after_utc:%Y-%m-%d}",
        )
    serial = tls.new_serial()
    certificate = tls.issue_certificate(
        root.tls_key,
        anchor.root,
        request.tls_key,
        request.identity,
        request.hosts,
        serial=serial,
        issued_at=issued_at,
        expires_at=expires_at,
    )
    record = CredentialRecord(
        consortium=request.identity.consortium,
        role=ROLES[request.identity.role],
        name=request.identity.name,
        signing_key=request.signing_key,
        sealing_key=request.sealing_key,
        tls_certificate=certificate,
        serial=serial,
        issued_at=issued_at,
        expires_at=expires_at,
    )
    return read_credential(root.sign(Label.CREDENTIAL, record), anchor)


def issue_status_list(
    root: RootKey, anchor: Anchor, *, number: int, revoked: Iterable[Revocation], now: float
) -> StatusList:
    """The status list with that number."""
    record = StatusListRecord(
        consortium=anchor.consortium,
        number=number,
        issued_at=int(now),
        revoked=sorted(revoked, key=lambda revocation: revocation.serial),
    )
    return verify_status_list(root.sign(Label.STATUS_LIST, record), anchor)
