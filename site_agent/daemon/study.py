"""One study as this site sees it: its verified manifests, its records, and its transcript.

Records are fetched, verified and journalled here, always in that order, so that the rest of the daemon
works with records that are believed and on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

from sqlalchemy import Connection, update

from cipherward.crypto.labels import Label
from cipherward.crypto.records import (
    Aborted,
    Closed,
    Plan,
    StudyTrust,
    verify_ending,
    verify_plan,
    verify_round_record,
)
from cipherward.crypto.signing import record_digest
from cipherward.crypto.suites.payload import Layout
from cipherward.errors import ConflictError, ProtocolError, UnavailableError, UsageError, VerificationError
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.coordinator_pb2 import RecordKind
from cipherward.proto.v1.round_pb2 import RoundRecord
from cipherward.site_agent.client.coordinator import CoordinatorClient
from cipherward.site_agent.daemon.site import Site
from cipherward.site_agent.journal.journal import Journal
from cipherward.site_agent.journal.outbox import Outbox
from cipherward.site_agent.state.studies import StudyRow, Versions
from cipherward.site_agent.state.tables import studies
from cipherward.site_agent.training.metrics import METRICS

R = TypeVar("R")

_REMEMBERED = 4
"""Records of a kind: of this round, and of the one before where that is still asked for."""


class _Verified(Generic[R]):
    """Records of one kind that were verified, by their bytes and what they were held against: every step of a round
    asks for them, and a plan of 1,000 members takes a tenth of a second."""

    def __init__(self) -> None:
        self._known: dict[tuple[bytes | int, ...], R] = {}

    def get(self, key: tuple[bytes | int, ...], verify: Callable[[], R]) -> R:
        """What ``verify`` returned for ``key``; raises what it raises."""
        found = self._known.get(key)
        if found is None:
            found = verify()
            # Replaced as a whole: a study has two threads.
            self._known = dict([*self._known.items(), (key, found)][-_REMEMBERED:])
        return found


class Study:
    """A study that was admitted. Safe to use from several threads."""

    def __init__(self, site: Site, client: CoordinatorClient, name: str) -> None:
        self.site, self.client, self.name = site, client, name
        self.journal = Journal(site.engine, name, site.clock)
        self.log = site.log.bind(study=name)
        self._openings = _Verified[tuple[RoundRecord, bytes]]()
        self._plans = _Verified[Plan]()

    def row(self) -> StudyRow:
        """Where it stands; raises UsageError if it was never admitted."""
        row = self.site.studies.row(self.name)
        if row is None:
            raise UsageError(f"study {self.name} is not known here")
        return row

    def versions(self) -> Versions:
        """Its accepted manifests; raises UsageError if it was never admitted."""
        versions = self.site.studies.versions(self.name)
        if versions is None:
            raise UsageError(f"study {self.name} was not admitted here")
        return versions

    def trust(self, round_number: int) -> StudyTrust:
        """The manifest in force in that round."""
        return self.versions().in_force(round_number)

    def layout(self, trust: StudyTrust) -> Layout:
        """Sizes of an update."""
        return Layout(trust.manifest.parameter_count, METRICS)

    def outbox(self, round_number: int) -> Outbox:
        """The round's files."""
        return Outbox(self.site.folder.outbox(self.name, round_number))

    # Records

    def _fetch(self, round_number: int, kind: RecordKind.ValueType, what: str) -> Signed:
        signed = self.client.record(self.name, round_number, kind)
        if signed is None:
            raise UnavailableError(f"the coordinator has no {what} of round {round_number} yet")
        return signed

    def round_record(self, round_number: int) -> tuple[RoundRecord, bytes]:
        """The round's opening and its digest. Raises UnavailableError if it is not open yet."""
        known = self.journal.entry(round_number).round_record
        signed = (
            Signed.FromString(known)
            if known is not None
            else self._fetch(round_number, RecordKind.RECORD_KIND_ROUND, "round record")
        )
        trust, content = self.trust(round_number), signed.SerializeToString(deterministic=True)
        opening = self._openings.get(
            (content, trust.digest, round_number),
            lambda: (
                verify_round_record(signed, trust, round_number),
                record_digest(Label.ROUND_RECORD, signed),
            ),
        )
        if known is None:
            self.journal.write(round_number, round_record=content)
        return opening

    def check_round_record(self, round_number: int, digest: bytes) -> None:
        """Raises VerificationError, and keeps the evidence, if the coordinator now speaks of another
        opening."""
        if digest and digest != self.round_record(round_number)[1]:
            other = self.client.record(self.name, round_number, RecordKind.RECORD_KIND_ROUND)
            self.journal.incident(round_number, "the coordinator opened this round twice", other)
            raise VerificationError(f"the coordinator opened round {round_number} of {self.name} twice")

    def plan(self, round_number: int, announced: bytes = b"") -> Plan:
        """The round's one plan record, accepted in the journal before it is used.

        ``announced``: the digest in the coordinator's snapshot; another than the accepted one is refused.
        """
        trust = self.trust(round_number)
        _, opening = self.round_record(round_number)

        def verified(signed: Signed) -> Plan:
            content = signed.SerializeToString(deterministic=True)
            return self._plans.get(
                (content, trust.digest, opening, round_number),
                lambda: verify_plan(signed, trust, opening, round_number),
            )

        known = self.journal.entry(round_number).plan_record
        if known is not None:
            plan = verified(Signed.FromString(known))
            if not announced or announced == plan.digest:
                return plan
        signed = self._fetch(round_number, RecordKind.RECORD_KIND_PLAN, "plan record")
        plan = verified(signed)
        self.journal.accept_plan(round_number, signed)
        return plan

    def closing(self, round_number: int) -> Closed | Aborted | None:
        """The verified record that ended the round, next in the transcript; None if there is none yet."""
        signed = self.client.record(self.name, round_number, RecordKind.RECORD_KIND_CLOSE)
        if signed is None:
            return None
        trust, transcript = self.trust(round_number), self.row().transcript
        return verify_ending(signed, trust, round_number, transcript, lambda: self.plan(round_number))

    # The transcript

    def chain(self, connection: Connection, round_number: int, ending: Closed | Aborted) -> None:
        """Put the record into the transcript, in the caller's transaction. Raises ConflictError out of
        order."""
        row = self.row_in(connection)
        if row.transcript_round >= round_number:
            raise ConflictError(f"round {round_number} of {self.name} is in the transcript already")
        cohort = " ".join(ending.cohort) if isinstance(ending, Closed) else None
        self.journal.write_in(
            connection,
            round_number,
            closing_record=ending.signed.SerializeToString(deterministic=True),
            transcript=ending.transcript,
            aborted=isinstance(ending, Aborted),
            contributors=cohort,
        )
        connection.execute(
            update(studies)
            .where(studies.c.study == self.name)
            .values(transcript_round=round_number, transcript=ending.transcript)
        )

    def row_in(self, connection: Connection) -> StudyRow:
        """The study's row as the transaction sees it."""
        query = studies.select().where(studies.c.study == self.name)
        return StudyRow(**connection.execute(query).one()._mapping)

    def settle_without_model(self, round_number: int, ending: Closed | Aborted) -> None:
        """Chain a round that this site applies no sum of: it was aborted, missed, or its sum did not
        verify."""
        entry = self.journal.entry(round_number)
        counted = isinstance(ending, Closed) and self.site.name in ending.cohort
        if entry.started and not counted:
            # Before the transaction, and idempotent: a crash between the two repeats it.
            self.mark_lost(round_number)
        with self.site.engine.begin() as connection:
            self.chain(connection, round_number, ending)
        self.outbox(round_number).discard()

    def mark_lost(self, round_number: int) -> None:
        """Its budget stays spent; the hospital's policy caps how often that may happen."""
        with suppress(ProtocolError):  # a crash came before the reservation: nothing was spent
            self.site.ledger.mark_lost(self.row().data_set, self.name, round_number)
