"""A site's record of privacy spent: per data set, append-only, never refunded.

Budget is reserved before training, in one transaction that checks and appends, so that no crash, restart,
second process or change of clock gives any of it back.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Row, func, insert, select, update

from cipherward.clock import Clock
from cipherward.errors import (
    BudgetError,
    ConflictError,
    PolicyError,
    ProtocolError,
    UsageError,
    VerificationError,
)
from cipherward.ids import Digest, StudyId, check_digest, check_name
from cipherward.site_agent.ledger import chain, cohorts
from cipherward.site_agent.ledger.accountant import Accountant
from cipherward.site_agent.ledger.accounting import PrivacyEvent, check_delta, check_round
from cipherward.site_agent.ledger.chain import Entry, Head, Kind
from cipherward.site_agent.ledger.encoding import events_from_json, events_to_json
from cipherward.site_agent.ledger.patients import PatientKey, set_digest
from cipherward.site_agent.ledger.tables import events, patients
from cipherward.site_agent.state.faults import explained_database


@dataclass(frozen=True, slots=True)
class DataSet:
    """A registered data set: its newest version, and how many patients that has."""

    name: str
    version: int
    patients: int


class Ledger:
    """Opened on the site's database, whose schema must exist. Safe for several threads and processes.

    Every method raises EnvironmentProblem if the database fails, and UnavailableError if another process
    holds it or the accountant fails; nothing is then recorded.
    """

    def __init__(self, engine: Engine, key: PatientKey, *, accountant: Accountant, clock: Clock) -> None:
        self._engine, self._key, self._accountant, self._clock = engine, key, accountant, clock
        self._groups: dict[tuple[str, int], frozenset[cohorts.Group]] = {}

    # Data sets

    def register(self, dataset: str, patient_ids: Iterable[str]) -> DataSet:
        """Record who is in the data set. The same patients again change nothing; others make a new version.

        Raises FormatError for an unusable name, UsageError for an empty id or set, VerificationError if the
        patient key is not the one that earlier registrations were made with.
        """
        check_name(dataset, "data set")
        digests = self._key.digests(patient_ids)
        name = set_digest(digests).hex()
        check = self._key.check_value().hex()
        with self._transaction("register the data set") as connection:
            any_row = self._newest_registration(connection, None)
            if any_row is not None and json.loads(any_row.details)["key"] != check:
                raise VerificationError(
                    "the site's patient key is not the one that its ledger was made with",
                    why="with another key, patients who were charged before would look new",
                    fix="Restore the key file from the site's backup",
                )
            row = self._newest_registration(connection, dataset)
            if row is not None and json.loads(row.details)["set"] == name:
                return _dataset(row)
            version = row.version + 1 if row is not None else 1
            _replace_patients(connection, dataset, version, digests)
            details = {"patients": len(digests), "set": name, "key": check}
            chain.append(connection, Entry(Kind.REGISTER, dataset, version, details, self._now()))
        return DataSet(dataset, version, len(digests))

    def datasets(self) -> list[DataSet]:
        """All that were ever registered, by name."""
        with self._transaction("read the ledger") as connection:
            names = connection.execute(
                select(events.c.dataset).distinct().order_by(events.c.dataset)
            ).scalars()
            return [self._registered(connection, name) for name in names.all()]

    def dataset(self, name: str) -> DataSet:
        """Raises UsageError if it was never registered."""
        with self._transaction("read the ledger") as connection:
            return self._registered(connection, name)

    def overlapping(self, dataset: str) -> frozenset[str]:
        """The data sets that share a patient with this one's present patients, itself included."""
        with self._transaction("read the ledger") as connection:
            self._registered(connection, dataset)
            return cohorts.overlapping(self._groups_of(connection, dataset))

    # Spending

    def reserve(
        self,
        dataset: str,
        study: StudyId | str,
        round_number: int,
        cost: Sequence[PrivacyEvent],
        *,
        manifest: Digest,
        ceiling: float,
        delta: float,
    ) -> Head:
        """Spend ``cost`` for one round before it trains, and return the ledger's head with it.

        The same reservation again (after a restart) changes nothing and returns its own head. Raises
        BudgetError if the worst patient's epsilon at ``delta`` would exceed ``ceiling``; ConflictError if the
        round was reserved with another cost, manifest or set of patients; UsageError for values out of range.
        """
        check_delta(delta)
        check_round(cost)
        check_digest(manifest, "the manifest's digest")
        if round_number < 1:
            raise UsageError(f"{round_number} is not a round", why="they are numbered from 1")
        with self._transaction("read the ledger") as connection:
            done = self._reserved(connection, dataset, study, round_number, cost, manifest)
            if done is not None:
                return done
            before = self._histories(connection, dataset)
        # Asked here, so that the answers are remembered and the transaction below is short.
        if not self._worst([_with(history, cost) for history in before], delta) <= ceiling:
            self._worst(before, delta)  # the refusal names it
        with self._transaction("reserve privacy budget") as connection:
            done = self._reserved(connection, dataset, study, round_number, cost, manifest)
            if done is not None:
                return done
            before = self._histories(connection, dataset)
            after = self._worst([_with(history, cost) for history in before], delta)
            if not after <= ceiling:
                spent = self._worst(before, delta)
                raise BudgetError(
                    f"data set {dataset!r} cannot pay for round {round_number} of study {study!r}",
                    why=f"epsilon {spent:.4g} of {ceiling:.4g} is spent at delta {delta:g}, and the round "
                    f"would make it {after:.4g}",
                    fix="Leave the study, or raise epsilon_ceiling in policy.toml; nothing spent comes back",
                )
            details = {
                "events": events_to_json(cost),
                "epsilon": after.hex(),
                "ceiling": float(ceiling).hex(),
                "delta": delta.hex(),
            }
            entry = Entry(
                kind=Kind.RESERVE,
                dataset=dataset,
                version=self._registered(connection, dataset).version,
                details=details,
                recorded_at=self._now(),
                study=str(study),
                round=round_number,
                manifest=bytes(manifest),
            )
            return chain.append(connection, entry)

    def check_trained(
        self, dataset: str, study: StudyId | str, round_number: int, patient_ids: Iterable[str]
    ) -> None:
        """Compare the patients that a round trained on with those that its reservation charged.

        Raises PolicyError if they are not the same, ProtocolError if the round was never reserved.
        """
        trained = set_digest(self._key.digests(patient_ids)).hex()
        with self._transaction("read the ledger") as connection:
            row = _find(connection, Kind.RESERVE, dataset, study, round_number)
            if row is None:
                raise ProtocolError(f"round {round_number} of study {study!r} trained without a reservation")
            query = select(events.c.details).where(
                events.c.kind == Kind.REGISTER.value,
                events.c.dataset == dataset,
                events.c.version == row.version,
            )
            charged = json.loads(connection.execute(query).scalar_one())["set"]
        if trained != charged:
            raise PolicyError(
                f"round {round_number} of study {study!r} trained on other patients than it was charged for",
                why=f"the source of data set {dataset!r} changed between the reservation and the training",
                fix="The update is discarded and the round stays paid for; replace data between rounds only",
            )

    def mark_lost(self, dataset: str, study: StudyId | str, round_number: int) -> None:
        """Note that a reserved round was aborted. It stays spent; policy caps how often this may happen.

        Noting it twice changes nothing. Raises ProtocolError if the round was never reserved.
        """
        with self._transaction("mark a reservation as lost") as connection:
            row = _find(connection, Kind.RESERVE, dataset, study, round_number)
            if row is None:
                raise ProtocolError(
                    f"round {round_number} of study {study!r} cannot be lost",
                    why=f"data set {dataset!r} has no reservation for it",
                )
            if _find(connection, Kind.LOST, dataset, study, round_number) is None:
                entry = Entry(
                    Kind.LOST, dataset, row.version, {}, self._now(), str(study), round_number, row.manifest
                )
                chain.append(connection, entry)

    # Questions

    def spent(self, dataset: str, delta: float, study: StudyId | str | None = None) -> float:
        """Epsilon at ``delta`` of the data set's worst patient, in all studies or as if there had been one only
        (such figures do not add up: together, studies cost less than their sum). Raises UsageError if it is not
        registered.
        """
        with self._transaction("read the ledger") as connection:
            before = self._histories(connection, dataset, study)
        return self._worst(before, delta)

    def cost_of(self, dataset: str, cost: Sequence[PrivacyEvent], delta: float) -> float:
        """Epsilon at ``delta`` of the data set's worst patient if ``cost`` were spent on top."""
        with self._transaction("read the ledger") as connection:
            before = self._histories(connection, dataset)
        return self._worst([_with(history, cost) for history in before], delta)

    def remaining_rounds(
        self, dataset: str, per_round: Sequence[PrivacyEvent], ceiling: float, delta: float
    ) -> int:
        """How many more such rounds the data set's worst patient can pay for."""
        with self._transaction("read the ledger") as connection:
            before = self._histories(connection, dataset)
        return min(self._accountant.rounds_left(history, per_round, ceiling, delta) for history in before)

    def count(self, kind: Kind, dataset: str, study: StudyId | str | None = None) -> int:
        """How many events of this kind the data set has, in one study or in all."""
        query = select(func.count()).where(events.c.kind == kind.value, events.c.dataset == dataset)
        if study is not None:
            query = query.where(events.c.study == str(study))
        with self._transaction("read the ledger") as connection:
            return connection.execute(query).scalar_one()

    def entries(self, datasets: Iterable[str] | None = None) -> list[tuple[Head, Entry]]:
        """All events in order, or those of some data sets."""
        query = select(events).order_by(events.c.sequence)
        if datasets is not None:
            query = query.where(events.c.dataset.in_(list(datasets)))
        with self._transaction("read the ledger") as connection:
            rows = connection.execute(query).all()
        return [(Head(row.sequence, Digest(row.head)), chain.entry_of(row)) for row in rows]

    # The chain

    def head(self) -> Head:
        """Signed into every commit."""
        with self._transaction("read the ledger") as connection:
            return chain.head(connection)

    def contains(self, sequence: int, digest: bytes) -> bool:
        """Whether this was the ledger's head once, or is now."""
        if sequence == 0:
            return digest == chain.EMPTY.digest
        with self._transaction("read the ledger") as connection:
            stored = connection.execute(select(events.c.head).where(events.c.sequence == sequence)).scalar()
        return stored == digest

    def check_not_rolled_back(self, sequence: int, digest: bytes) -> None:
        """Compare with the newest head that this site signed into the transcript.

        Raises VerificationError if the ledger does not have it: it is an older copy, or has another history.
        """
        if self.contains(sequence, digest):
            return
        now = self.head()
        raise VerificationError(
            "this ledger is not the one that the site signed for in the transcript",
            why=f"it ends at event {now.sequence}, and the site signed event {sequence}"
            if now.sequence < sequence
            else f"its event {sequence} is another one",
            fix="Restore the newest backup of the site's state; training on would spend privacy twice",
        )

    def verify_chain(self) -> Head:
        """Recompute everything. Raises VerificationError naming the first event that does not hold."""
        with self._transaction("read the ledger") as connection:
            return chain.verify(connection)

    # Inside a transaction

    @contextmanager
    def _transaction(self, what: str) -> Iterator[Connection]:
        with explained_database(what), self._engine.begin() as connection:
            yield connection

    def _now(self) -> int:
        return round(self._clock.now() * 1000)

    def _newest_registration(self, connection: Connection, dataset: str | None) -> Row[Any] | None:
        query = select(events).where(events.c.kind == Kind.REGISTER.value)
        if dataset is not None:
            query = query.where(events.c.dataset == dataset)
        return connection.execute(query.order_by(events.c.sequence.desc()).limit(1)).first()

    def _registered(self, connection: Connection, dataset: str) -> DataSet:
        row = self._newest_registration(connection, dataset)
        if row is None:
            raise UsageError(
                f"data set {dataset!r} is not registered in the ledger",
                why="a data set is registered when its patients are first loaded",
                fix="Check its name in policy.toml",
            )
        return _dataset(row)

    def _groups_of(self, connection: Connection, dataset: str) -> frozenset[cohorts.Group]:
        newest = self._newest_registration(connection, None)
        key = (dataset, newest.sequence if newest is not None else 0)
        found = self._groups.get(key)
        if found is None:  # memberships change only by a registration, of any data set
            found = cohorts.groups(connection, dataset)
            current = {known: value for known, value in self._groups.items() if known[1] == key[1]}
            self._groups = {**current, key: found}
        return found

    def _histories(
        self, connection: Connection, dataset: str, study: StudyId | str | None = None
    ) -> list[cohorts.History]:
        self._registered(connection, dataset)
        only = None if study is None else str(study)
        return cohorts.histories(connection, self._groups_of(connection, dataset), only)

    def _worst(self, histories: Iterable[cohorts.History], delta: float) -> float:
        return max(self._accountant.epsilon(history, delta) for history in histories)

    def _reserved(
        self,
        connection: Connection,
        dataset: str,
        study: StudyId | str,
        round_number: int,
        cost: Sequence[PrivacyEvent],
        manifest: bytes,
    ) -> Head | None:
        row = _find(connection, Kind.RESERVE, dataset, study, round_number)
        if row is None:
            return None
        differs = [
            what
            for what, same in (
                ("cost", events_from_json(json.loads(row.details)["events"]) == tuple(cost)),
                ("manifest", row.manifest == manifest),
                ("set of patients", row.version == self._registered(connection, dataset).version),
            )
            if not same
        ]
        if differs:
            raise ConflictError(
                f"round {round_number} of study {study!r} is already reserved on data set {dataset!r}",
                why=f"it was with another {' and another '.join(differs)}",
                fix="Sit this round out; the next one can be reserved anew",
            )
        return Head(row.sequence, Digest(row.head))


def _with(history: cohorts.History, cost: Sequence[PrivacyEvent]) -> cohorts.History:
    return (*history, *cost)


def _dataset(row: Row[Any]) -> DataSet:
    return DataSet(row.dataset, row.version, json.loads(row.details)["patients"])


def _find(
    connection: Connection, kind: Kind, dataset: str, study: StudyId | str, round_number: int
) -> Row[Any] | None:
    return connection.execute(
        select(events).where(
            events.c.kind == kind.value,
            events.c.dataset == dataset,
            events.c.study == str(study),
            events.c.round == round_number,
        )
    ).first()


def _replace_patients(connection: Connection, dataset: str, version: int, digests: list[Digest]) -> None:
    here = patients.c.dataset == dataset
    present = select(patients.c.digest).where(here, patients.c.until.is_(None))
    old, new = set(connection.execute(present).scalars()), set(digests)
    leaving = update(patients).where(here, patients.c.until.is_(None))
    for gone in old - new:
        connection.execute(leaving.where(patients.c.digest == gone).values(until=version))
    joining = [{"dataset": dataset, "digest": one, "since": version} for one in digests if one not in old]
    if joining:
        connection.execute(insert(patients), joining)
