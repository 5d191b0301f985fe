"""One row for each (study, round); what carries the security is written once (quorum-suite rules 1, 2 and 5;
1 and 5 apply to both suites).

``accept_plan`` is the rule that carries the security: a site accepts one plan record for a (study, round),
ever. SQLite runs with synchronous=FULL, so that what a method here has returned from is on disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Row, bindparam, insert, select, update

from cipherward.clock import Clock
from cipherward.crypto.labels import Label, digest
from cipherward.crypto.signing import record_digest
from cipherward.errors import ConflictError, VerificationError
from cipherward.ids import DIGEST_BYTES
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.site_agent.state.tables import incidents, rounds


@dataclass(frozen=True, slots=True)
class Entry:
    """What is journalled about a round; None where it has not come to that."""

    round: int
    round_record: bytes | None = None
    started: bool | None = None
    update_digest: bytes | None = None
    join_record: bytes | None = None
    former_joins: bytes | None = None
    plan_record: bytes | None = None
    attempt: int | None = None
    chunk_count: int | None = None
    ciphertext_root: bytes | None = None
    share_root: bytes | None = None
    commit_record: bytes | None = None
    acknowledgement: bytes | None = None
    answered_close: bytes | None = None
    closing_record: bytes | None = None
    transcript: bytes | None = None
    aborted: bool | None = None
    contributors: str | None = None
    model_digest: bytes | None = None
    loss: float | None = None
    accuracy: float | None = None
    patients: float | None = None
    skipped: str | None = None

    @property
    def cohort(self) -> tuple[str, ...]:
        """U of a closed round, in order; empty otherwise."""
        return tuple((self.contributors or "").split())

    def has_joined_with(self, payload: bytes) -> bool:
        """Whether this site signed that very join in the round."""
        newest = None if self.join_record is None else Signed.FromString(self.join_record).payload
        former, wanted = self.former_joins or b"", digest(Label.JOIN, payload)
        starts = range(0, len(former), DIGEST_BYTES)
        return payload == newest or any(former[at : at + DIGEST_BYTES] == wanted for at in starts)


_COLUMNS = [rounds.c[name] for name in Entry.__dataclass_fields__]
# Made once: it is asked for dozens of times a round, and making a statement costs more than running it.
_ENTRY = select(*_COLUMNS).where(
    rounds.c.study == bindparam("study"), rounds.c.round == bindparam("round_number")
)


class Journal:
    """The journal of one study. Raises ConflictError where something written would change."""

    def __init__(self, engine: Engine, study: str, clock: Clock) -> None:
        self._engine, self._study, self._clock = engine, study, clock

    def entry(self, round_number: int) -> Entry:
        """What is known of the round; an empty entry if nothing is."""
        with self._engine.begin() as connection:
            row = self._row(connection, round_number)
        return Entry(**row._mapping) if row is not None else Entry(round_number)

    def history(self) -> list[Entry]:
        """All rounds known, oldest first."""
        query = select(*_COLUMNS).where(rounds.c.study == self._study).order_by(rounds.c.round)
        with self._engine.begin() as connection:
            return [Entry(**row._mapping) for row in connection.execute(query)]

    def write(self, round_number: int, **values: Any) -> None:
        """Write columns of the round that are not written yet; writing the same value again does nothing.

        Durable on return. Raises ConflictError (and writes nothing) if a value differs from the one there.
        """
        with self._engine.begin() as connection:
            self.write_in(connection, round_number, **values)

    def write_in(self, connection: Connection, round_number: int, **values: Any) -> None:
        """As ``write``, in the caller's transaction."""
        row = self._row(connection, round_number)
        if row is None:
            connection.execute(insert(rounds).values(study=self._study, round=round_number, **values))
            return
        for name, value in values.items():
            known = row._mapping[name]
            if known is not None and known != value:
                raise ConflictError(
                    f"the {name.replace('_', ' ')} of round {round_number} of {self._study} is on record",
                    why="another one came afterwards",
                )
        where = (rounds.c.study == self._study, rounds.c.round == round_number)
        connection.execute(update(rounds).where(*where).values(**values))

    def _row(self, connection: Connection, round_number: int) -> Row[Any] | None:
        return connection.execute(_ENTRY, {"study": self._study, "round_number": round_number}).one_or_none()

    def put_join(self, round_number: int, join: Signed) -> None:
        """The join to post from now on. ConflictError once there is a plan."""
        entry = self.entry(round_number)
        if entry.plan_record is not None:
            raise ConflictError(
                f"round {round_number} of {self._study} has its plan", why="joins came before it"
            )
        former = entry.former_joins or b""
        if entry.join_record is not None:
            former += record_digest(Label.JOIN, Signed.FromString(entry.join_record))
        where = (rounds.c.study == self._study, rounds.c.round == round_number)
        with self._engine.begin() as connection:
            connection.execute(
                update(rounds)
                .where(*where)
                .values(join_record=join.SerializeToString(deterministic=True), former_joins=former)
            )

    def accept_plan(self, round_number: int, plan: Signed) -> None:
        """The one plan record of the round. A second one is kept as evidence and raises VerificationError.

        ``plan`` must be verified. Records are the same if their signed payloads are.
        """
        known = self.entry(round_number).plan_record
        if known is None:
            self.write(round_number, plan_record=plan.SerializeToString(deterministic=True))
            return
        accepted = Signed.FromString(known)
        if record_digest(Label.PLAN_RECORD, accepted) != record_digest(Label.PLAN_RECORD, plan):
            self.incident(round_number, "the coordinator signed a second plan record for this round", plan)
            raise VerificationError(
                f"the coordinator showed a second plan record for round {round_number} of {self._study}",
                why="a site accepts one per round, ever",
                fix="Nothing was sent under it; tell the consortium's admin, the record is kept as evidence",
            )

    def next_attempt(self, round_number: int) -> int:
        """A fresh attempt number, on disk before anything is sent under it. Not after the commit."""
        entry = self.entry(round_number)
        if entry.commit_record is not None:
            raise ConflictError(f"round {round_number} is committed", why="a committed update is spent")
        attempt = (entry.attempt or 0) + 1
        where = (rounds.c.study == self._study, rounds.c.round == round_number)
        with self._engine.begin() as connection:
            connection.execute(
                update(rounds)
                .where(*where)
                .values(attempt=attempt, chunk_count=None, ciphertext_root=None, share_root=None)
            )
        return attempt

    def incident(self, round_number: int, message: str, evidence: Signed | None = None) -> None:
        """Keep what was refused and why, for ``site status`` and an auditor."""
        proof = None if evidence is None else evidence.SerializeToString(deterministic=True)
        with self._engine.begin() as connection:
            same = connection.execute(
                select(incidents.c.id).where(
                    incidents.c.study == self._study,
                    incidents.c.round == round_number,
                    incidents.c.message == message,
                )
            ).first()
            if same is None:
                connection.execute(
                    insert(incidents).values(
                        study=self._study,
                        round=round_number,
                        recorded_at=int(self._clock.now()),
                        message=message,
                        evidence=proof,
                    )
                )
