"""Revocation: a numbered list that the root signs. A newer list repeats all of the older one, so that neither
a hostile coordinator nor an admin's restored backup brings a revoked member back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from cipherward.crypto.labels import Label
from cipherward.crypto.pki.anchor import Anchor
from cipherward.errors import FormatError, IdentityError, VerificationError
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.identity_pb2 import Revocation
from cipherward.proto.v1.identity_pb2 import StatusList as StatusListRecord


class RevocationSource(Protocol):
    """Knows who is revoked: one list, or the checker that keeps the newest."""

    def check(self, serial: int, who: str) -> None:
        """Raises IdentityError if the credential with that serial number is revoked."""


@dataclass(frozen=True, slots=True)
class StatusList:
    """A verified status list."""

    number: int
    issued_at: int
    revoked: Mapping[int, Revocation]
    """By serial number."""
    signed: Signed

    def check(self, serial: int, who: str) -> None:
        """Raises IdentityError if the credential with that serial number is revoked."""
        revocation = self.revoked.get(serial)
        if revocation is not None:
            raise IdentityError(
                f"the credential of {who} is revoked",
                why=f"status list {self.number} names it: {revocation.reason or 'no reason given'}",
                fix="Ask the consortium's admin",
            )


def verify_status_list(signed: Signed, anchor: Anchor) -> StatusList:
    """Check signature, consortium and structure; raises VerificationError."""
    record = anchor.verify(signed, Label.STATUS_LIST, StatusListRecord)
    anchor.require_consortium(record.consortium, "status list")
    revoked = {revocation.serial: revocation for revocation in record.revoked}
    if record.number < 1 or len(revoked) != len(record.revoked) or 0 in revoked:
        raise FormatError("a status list does not have the agreed structure")
    return StatusList(record.number, record.issued_at, revoked, signed)


class StatusChecker:
    """The newest status list seen, in memory; safe to share between threads.

    ``remember`` persists a newer list before it takes effect, so that a restart does not forget it.
    """

    def __init__(self, anchor: Anchor, known: Signed, remember: Callable[[Signed], None]) -> None:
        self._anchor = anchor
        self._newest = verify_status_list(known, anchor)
        self._remember = remember
        self._lock = threading.Lock()

    @property
    def newest(self) -> StatusList:
        """The list in force."""
        return self._newest

    def offer(self, signed: Signed) -> bool:
        """Take a list from a peer or file. True if it is newer, False if it is the one in force.

        Raises VerificationError if it is not the root's, is older, has the number of the one in force and
        another content, or takes back a revocation.
        """
        if signed == self._newest.signed:
            return False
        offered = verify_status_list(signed, self._anchor)
        with self._lock:
            self._check_successor(offered)
            if offered.number == self._newest.number:
                return False
            self._remember(signed)
            self._newest = offered
        return True

    def _check_successor(self, offered: StatusList) -> None:
        newest = self._newest
        if offered.number < newest.number:
            raise VerificationError(
                f"status list {offered.number} is out of date",
                why=f"list {newest.number} has been seen",
                fix="Use the newest status list; the sender may be holding it back",
            )
        if offered.number == newest.number and offered.signed.payload != newest.signed.payload:
            raise VerificationError(
                f"there are two different status lists with number {offered.number}",
                why="the consortium's root signed both, perhaps after restoring a backup",
                fix="Tell the consortium's admin",
            )
        if not newest.revoked.keys() <= offered.revoked.keys():
            raise VerificationError(
                f"status list {offered.number} takes back a revocation",
                why="a newer list must repeat the older one",
                fix="Tell the consortium's admin: the root's folder may be a restored backup",
            )

    def check(self, serial: int, who: str) -> None:
        """Raises IdentityError if the credential with that serial number is revoked."""
        self._newest.check(serial, who)
