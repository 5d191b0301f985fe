"""Loading a member's folder at start, with a preflight: gRPC says only UNAVAILABLE when a server rejects a
certificate, so whatever can be found wrong with it here is found, and said in one line."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import grpc

from cipherward.crypto.pki import grpc_credentials, member_files, tls
from cipherward.crypto.pki.anchor import Anchor
from cipherward.crypto.pki.armour import Kind, unarmour_signed
from cipherward.crypto.pki.credentials import Credential, read_credential
from cipherward.crypto.pki.status_list import StatusChecker
from cipherward.crypto.signing import SigningKey
from cipherward.durable import read_file, read_secret
from cipherward.errors import EnvironmentProblem, IdentityError, UsageError
from cipherward.ids import Identity, Role

WARN_DAYS = 30
"""Days before expiry from which the member is warned."""


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """Who this machine is: identity, keys and certificates that belong together. Does not pickle."""

    identity: Identity
    anchor: Anchor
    credential: Credential
    status: StatusChecker
    """Starts from the folder's status list and keeps newer ones there."""
    signing_key: SigningKey
    _tls_key: bytes = field(repr=False)

    @property
    def tls_certificate(self) -> bytes:
        """This member's certificate, PEM."""
        return tls.to_pem(self.credential.certificate)

    def server_credentials(self) -> grpc.ServerCredentials:
        """TLS for a coordinator's port, clients' certificates required."""
        return grpc_credentials.server_credentials(
            key_pem=self._tls_key, certificate_pem=self.tls_certificate, root_pem=self.anchor.root_pem
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """TLS for dialling the coordinator with this member's certificate."""
        return grpc_credentials.channel_credentials(
            key_pem=self._tls_key, certificate_pem=self.tls_certificate, root_pem=self.anchor.root_pem
        )

    def days_left(self, now: float) -> int:
        """Whole days until the credential expires."""
        return self.credential.days_left(now)

    def warnings(self, now: float) -> tuple[str, ...]:
        """Lines for the member's admin about what will soon stop working."""
        left = self.days_left(now)
        if left >= WARN_DAYS:
            return ()
        return (
            f"the certificate of {self.identity} expires in {left} days, on {self.credential.expiry}: "
            f"have the consortium's admin approve {member_files.REQUEST} again",
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError("a member holds keys and does not pickle")


def load_member(folder: Path, role: Role, now: float) -> Member:
    """The member whose folder this is, after the preflight.

    Checks that the folder is complete and its keys readable by the owner only; that keys, certificate and
    credential belong together and to the pinned root; name and role; clock, expiry and revocation. Raises
    EnvironmentProblem, UsageError, FormatError, VerificationError or IdentityError with one line that says
    what to do. A site loads its sealing key by ``site_keys``.
    """
    check_complete(folder, role)
    anchor = member_files.read_anchor(folder)
    request = member_files.read_request(folder)
    if request.identity.role is not role:
        raise UsageError(
            f"{folder} belongs to {request.identity}, and must be of role {role.value}",
            fix="Choose the right folder",
        )
    credential = read_credential(
        unarmour_signed(Kind.CREDENTIAL, read_file(folder / member_files.CREDENTIAL)), anchor
    )
    if credential.identity != request.identity:
        raise IdentityError(
            f"the credential in {folder} is for {credential.identity}", why=f"its owner is {request.identity}"
        )
    signing_key = SigningKey.from_bytes(read_secret(folder / member_files.SIGNING_KEY))
    tls_key = read_secret(folder / member_files.TLS_KEY)
    _check_keys(folder, credential, signing_key, tls_key)
    status = member_files.open_status(folder, anchor)
    credential.check(now, status)
    return Member(request.identity, anchor, credential, status, signing_key, tls_key)


def check_complete(folder: Path, role: Role) -> None:
    """Raises EnvironmentProblem unless the folder was made for such a member, UsageError before its approval."""
    if not (folder / member_files.REQUEST).exists():
        raise EnvironmentProblem(
            f"{folder} is not the folder of a {role.value}",
            why=f"it has no {member_files.REQUEST}",
            fix=f"Check the path, or run `cipherward {role.value} init` first",
        )
    if not (folder / member_files.CREDENTIAL).exists():
        raise UsageError(
            f"the {role.value} in {folder} has not been approved yet",
            why=f"it has no {member_files.CREDENTIAL}",
            fix=f"Send {folder / member_files.REQUEST} to the consortium's admin, and install the answer: "
            f"`cipherward {role.value} init --dir {shlex.quote(str(folder))} --credential FILE`",
        )


def _check_keys(folder: Path, credential: Credential, signing_key: SigningKey, tls_key: bytes) -> None:
    wrong = ""
    if tls.key_digest(tls.key_from_pem(tls_key).public_key()) != credential.tls_key_digest:
        wrong = member_files.TLS_KEY
    elif signing_key.public() != credential.signing_key:
        wrong = member_files.SIGNING_KEY
    if wrong:
        raise IdentityError(
            f"{folder / wrong} does not belong to {member_files.CREDENTIAL} beside it",
            why="one of them was replaced, or restored from another backup",
            fix="Restore the whole folder, or begin again in an empty one and have it approved",
        )
