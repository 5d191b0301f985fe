"""The consortium's own folder, on an offline machine.

``root.key``: both private keys, under a passphrase. ``anchor.pem``: the public root. ``status-list.pem``: the
newest list; what it names is revoked. ``issued.json``: an index of credentials. ``credentials/``: what
members install, a file each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from cipherward.crypto.pki import member_files
from cipherward.crypto.pki.anchor import Anchor
from cipherward.crypto.pki.armour import Kind, armour_signed, blocks, parse_signed, unarmour_signed
from cipherward.crypto.pki.credentials import Credential, read_credential
from cipherward.crypto.pki.issuing import issue_credential, issue_status_list
from cipherward.crypto.pki.requests import Request
from cipherward.crypto.pki.root_key import RootKey
from cipherward.crypto.pki.status_list import StatusList, verify_status_list
from cipherward.crypto.sealing_keys import check_public
from cipherward.durable import explained, read_file, read_secret, write_file, write_secret
from cipherward.errors import ConflictError, EnvironmentProblem, FormatError, UsageError
from cipherward.ids import Identity, Role
from cipherward.proto.v1.identity_pb2 import Revocation

ROOT_KEY, INDEX, CREDENTIALS = "root.key", "issued.json", "credentials"
_FILE = re.compile(r"[a-z0-9-]{1,200}\.pem\Z")


@dataclass(frozen=True, slots=True)
class Issued:
    """A line of the index."""

    identity: str
    serial: int
    issued_at: int
    expires_at: int
    fingerprint: str
    file: str


def _line(**fields: object) -> Issued:
    """A line as it was written; raises TypeError or ValueError for any other."""
    kinds = {
        "identity": str,
        "serial": int,
        "issued_at": int,
        "expires_at": int,
        "fingerprint": str,
        "file": str,
    }
    line = Issued(**fields)  # type: ignore[arg-type]  # checked next
    if any(type(fields[name]) is not kind for name, kind in kinds.items()):
        raise TypeError("a line has a value of the wrong type")
    if _FILE.match(line.file) is None:
        raise ValueError("a line names a file outside the folder")
    return line


def create_consortium(folder: Path, name: str, passphrase: str, now: float) -> Anchor:
    """Make the root. Raises UsageError if the folder already holds one: a root is never overwritten."""
    with explained("create", folder):
        (folder / CREDENTIALS).mkdir(mode=0o700, parents=True, exist_ok=True)
    if (folder / ROOT_KEY).exists():
        raise UsageError(
            f"{folder} already holds a consortium's root",
            why="a root key is never overwritten",
            fix="Choose another folder",
        )
    root = RootKey.generate()
    anchor = root.make_anchor(name, now)
    status = issue_status_list(root, anchor, number=1, revoked=[], now=now)
    write_file(folder / member_files.ANCHOR, anchor.to_text())
    write_file(folder / member_files.STATUS_LIST, armour_signed(Kind.STATUS_LIST, status.signed))
    write_file(folder / INDEX, b"[]\n")
    # Last: until the root exists, a second run may begin again.
    write_secret(folder / ROOT_KEY, root.to_text(passphrase))
    return anchor


class ConsortiumFolder:
    """What the admin does with the root. ``unlock`` is needed for what the root signs."""

    def __init__(self, folder: Path) -> None:
        if not (folder / ROOT_KEY).exists():
            raise EnvironmentProblem(
                f"{folder} is not a consortium's folder",
                why=f"it has no {ROOT_KEY}",
                fix="Check --dir, or run `cipherward consortium init` first",
            )
        self._folder = folder
        self.anchor = member_files.read_anchor(folder)

    def unlock(self, passphrase: str) -> RootKey:
        """The root key; raises VerificationError for a wrong passphrase."""
        root = RootKey.from_text(read_secret(self._folder / ROOT_KEY), passphrase)
        root.require_anchor(self.anchor)
        return root

    def status(self) -> StatusList:
        """The newest status list."""
        text = read_file(self._folder / member_files.STATUS_LIST, limit=member_files.MAX_TEXT_BYTES)
        return verify_status_list(unarmour_signed(Kind.STATUS_LIST, text), self.anchor)

    def issued(self) -> list[Issued]:
        """The index, oldest first; raises FormatError."""
        try:
            return [_line(**line) for line in json.loads(read_file(self._folder / INDEX))]
        except (ValueError, TypeError, RecursionError) as error:
            raise FormatError(
                f"{self._folder / INDEX} is damaged", why=str(error), fix="Restore the folder from a backup"
            ) from error

    def _write_index(self, lines: Iterable[Issued]) -> None:
        text = json.dumps([asdict(line) for line in lines], indent=1) + "\n"
        write_file(self._folder / INDEX, text.encode())

    def in_force(self, now: float) -> list[Issued]:
        """The credentials that are neither expired nor revoked, oldest first."""
        revoked = self.status().revoked
        return [line for line in self.issued() if line.expires_at > now and line.serial not in revoked]

    def _in_force_of(self, identity: Identity, now: float) -> list[Issued]:
        return [line for line in self.in_force(now) if line.identity == str(identity)]

    def credential(self, identity: Identity, now: float) -> Credential:
        """The member's newest credential in force; raises UsageError if it has none."""
        lines = self._in_force_of(identity, now)
        if not lines:
            raise UsageError(
                f"{identity} has no credential in force",
                why="it was never approved, or its credential is expired or revoked",
                fix="Run `cipherward consortium approve` with its request",
            )
        found = blocks(read_file(self._folder / CREDENTIALS / lines[-1].file))
        signed = [parse_signed(kind, content) for kind, content in found if kind is Kind.CREDENTIAL]
        if len(signed) != 1:
            raise FormatError(f"{CREDENTIALS}/{lines[-1].file} does not hold one credential")
        credential = read_credential(signed[0], self.anchor)
        if (credential.identity, credential.serial) != (identity, lines[-1].serial):
            raise FormatError(f"{CREDENTIALS}/{lines[-1].file} is not the credential of {identity}")
        return credential

    def members(self, role: Role, now: float) -> list[Identity]:
        """Those with a credential in force, in the order of their names."""
        found = {Identity.parse(line.identity) for line in self.in_force(now)}
        return sorted((who for who in found if who.role is role), key=str)

    def approve(
        self, root: RootKey, request: Request, *, days: int, replace_keys: bool, now: float
    ) -> tuple[Credential, Path]:
        """Issue a credential; gives it and the file that the member installs.

        Approving the same keys again renews the credential. Other keys under a name in use are refused with
        ConflictError unless ``replace_keys``, which revokes what was issued before.
        """
        if request.sealing_key:
            check_public(request.sealing_key)
        earlier = self._in_force_of(request.identity, now)
        outdated = [line for line in earlier if line.fingerprint != request.fingerprint.hex()]
        if outdated and not replace_keys:
            raise ConflictError(
                f"{request.identity} has a credential for other keys",
                why=f"it was issued for the keys {outdated[-1].fingerprint[:16]}... and is in force",
                fix="If the member lost its keys, approve with --replace: that revokes the old credential",
            )
        credential = issue_credential(root, self.anchor, request, days=days, now=now)
        if outdated:
            self._revoke(root, outdated, "replaced by other keys", now)
        name = f"{request.identity.role.value}-{request.identity.name}-{credential.serial:016x}.pem"
        path = self._folder / CREDENTIALS / name
        line = Issued(
            identity=str(request.identity),
            serial=credential.serial,
            issued_at=credential.issued_at,
            expires_at=credential.expires_at,
            fingerprint=credential.fingerprint.hex(),
            file=name,
        )
        # The index first: a credential that is not in it could not be revoked by name.
        self._write_index([*self.issued(), line])
        write_file(path, member_files.bundle(self.anchor, credential, self.status()), replace=False)
        return credential, path

    def revoke(self, root: RootKey, identity: Identity, reason: str, now: float) -> StatusList:
        """Revoke all of the member's credentials in force. Raises UsageError if it has none."""
        lines = self._in_force_of(identity, now)
        if not lines:
            raise UsageError(
                f"{identity} has no credential in force",
                why="there is nothing to revoke",
                fix="Check the name",
            )
        return self._revoke(root, lines, reason, now)

    def _revoke(self, root: RootKey, lines: Iterable[Issued], reason: str, now: float) -> StatusList:
        old = self.status()
        revoked = dict(old.revoked)
        for line in lines:
            revoked[line.serial] = Revocation(
                serial=line.serial, identity=line.identity, reason=reason, revoked_at=int(now)
            )
        new = issue_status_list(root, self.anchor, number=old.number + 1, revoked=revoked.values(), now=now)
        write_file(self._folder / member_files.STATUS_LIST, armour_signed(Kind.STATUS_LIST, new.signed))
        return new
