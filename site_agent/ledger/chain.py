"""The chain of ledger events: what is hashed, how one is added, and how all are checked.

An event's head is H(LEDGER, previous head, its content in canonical JSON). Cutting off the newest events is
the one change that the chain itself cannot show; the head that every commit signs shows it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Row, insert, or_, select

from cipherward.crypto.labels import Label, digest
from cipherward.errors import VerificationError
from cipherward.ids import DIGEST_BYTES, Digest
from cipherward.site_agent.ledger.encoding import canonical
from cipherward.site_agent.ledger.patients import set_digest
from cipherward.site_agent.ledger.tables import events, patients


class Kind(StrEnum):
    """What an event records."""

    REGISTER = "register"  # a data set, or a new version of it
    RESERVE = "reserve"  # budget for one round; never given back
    LOST = "lost"  # a reservation whose round was aborted; spent all the same


@dataclass(frozen=True, slots=True)
class Head:
    """Where the ledger stands: the number of its newest event, and that event's hash."""

    sequence: int
    digest: Digest


EMPTY = Head(0, Digest(bytes(DIGEST_BYTES)))


@dataclass(frozen=True, slots=True)
class Entry:
    """An event's content. ``details`` depends on the kind; floats in it are hexadecimal strings."""

    kind: Kind
    dataset: str
    version: int
    details: dict[str, Any]
    recorded_at: int
    study: str | None = None
    round: int | None = None
    manifest: bytes | None = None


def head(connection: Connection) -> Head:
    """The newest event's, or EMPTY."""
    newest = select(events.c.sequence, events.c.head).order_by(events.c.sequence.desc()).limit(1)
    row = connection.execute(newest).first()
    return Head(row.sequence, Digest(row.head)) if row else EMPTY


def append(connection: Connection, entry: Entry) -> Head:
    """Add one event, inside the caller's transaction."""
    last = head(connection)
    values: dict[str, Any] = {
        "sequence": last.sequence + 1,
        "kind": entry.kind.value,
        "dataset": entry.dataset,
        "version": entry.version,
        "study": entry.study,
        "round": entry.round,
        "manifest": entry.manifest,
        "details": canonical(entry.details),
        "recorded_at": entry.recorded_at,
    }
    new = Head(last.sequence + 1, _hash(last.digest, values))
    connection.execute(insert(events).values(**values, previous=last.digest, head=new.digest))
    return new


def entry_of(row: Row[Any]) -> Entry:
    """A stored event's content."""
    return Entry(
        Kind(row.kind),
        row.dataset,
        row.version,
        json.loads(row.details),
        row.recorded_at,
        row.study,
        row.round,
        row.manifest,
    )


def verify(connection: Connection) -> Head:
    """Recompute every hash, and compare every registered set of patients with its digest.

    Raises VerificationError that names the first event that does not hold.
    """
    last = EMPTY
    for row in connection.execute(select(events).order_by(events.c.sequence)):
        if row.sequence != last.sequence + 1:
            raise _broken(last.sequence + 1, "", f"it is missing; the next in the ledger is {row.sequence}")
        of = f", study {row.study} round {row.round}" if row.study else ""
        name = f" ({row.kind} of data set {row.dataset}{of})"
        if row.previous != last.digest:
            raise _broken(row.sequence, name, "it does not follow from the event before it")
        if row.head != _hash(last.digest, row._mapping):
            raise _broken(row.sequence, name, "its content does not give its recorded hash")
        if row.kind == Kind.REGISTER:
            members = _members(connection, row.dataset, row.version)
            if set_digest(members).hex() != json.loads(row.details)["set"]:
                raise _broken(row.sequence, name, "the stored patients are not those that were registered")
        last = Head(row.sequence, Digest(row.head))
    return last


def _hash(previous: bytes, values: Any) -> Digest:
    content = [
        values["sequence"],
        values["kind"],
        values["dataset"],
        values["version"],
        values["study"],
        values["round"],
        None if values["manifest"] is None else values["manifest"].hex(),
        values["details"],
        values["recorded_at"],
    ]
    return digest(Label.LEDGER, previous, canonical(content).encode())


def _members(connection: Connection, dataset: str, version: int) -> list[bytes]:
    rows = connection.execute(
        select(patients.c.digest)
        .where(
            patients.c.dataset == dataset,
            patients.c.since <= version,
            or_(patients.c.until.is_(None), patients.c.until > version),
        )
        .order_by(patients.c.digest)
    )
    return list(rows.scalars())


def _broken(sequence: int, name: str, why: str) -> VerificationError:
    return VerificationError(
        f"ledger event {sequence}{name} does not hold",
        why=why,
        fix="The file was changed or damaged: restore the newest backup, and do not train until it verifies",
    )
