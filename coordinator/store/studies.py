"""Studies, their manifests, and the records of their rounds, within a transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, delete, select, update

from cipherward.coordinator.rounds import codec
from cipherward.coordinator.rounds.state import State
from cipherward.coordinator.store.schema import manifests, posts, records, rounds, studies
from cipherward.errors import FormatError
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.coordinator_pb2 import RecordKind

JOIN, COMMIT, REPORT = "join", "commit", "report"
ACKNOWLEDGEMENT, ANSWER, SUM_CHECK = "acknowledgement", "answer", "sum-check"  # quorum


@dataclass(frozen=True, slots=True)
class StudyRow:
    """A study as stored."""

    study: str
    state: State
    transcript: bytes
    weights: str


@dataclass(frozen=True, slots=True)
class RoundFigures:
    """What reports say of a round. Times are Unix seconds."""

    round: int
    opened_at: float
    planned_at: float | None = None
    reported_at: float | None = None
    contributors: tuple[str, ...] = field(default=())
    aborted: bool = False
    reason: str = ""
    bytes_up: int = 0
    bytes_down: int = 0


def _signed(raw: bytes) -> Signed:
    return Signed.FromString(raw)


class StudyTable:
    """Reads and writes; the caller's transaction makes them atomic."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def all(self) -> list[StudyRow]:
        """Every study."""
        rows = self._connection.execute(select(studies))
        found = [StudyRow(row.study, codec.decode(row.state), row.transcript, row.weights) for row in rows]
        return sorted(found, key=lambda row: row.study)  # databases sort text each in their own way

    def create(self, row: StudyRow) -> None:
        """A new study; IntegrityError if there is one of that name."""
        self._connection.execute(
            studies.insert().values(
                study=row.study,
                state=codec.encode(row.state),
                transcript=row.transcript,
                weights=row.weights,
            )
        )

    def save(self, study: str, state: State, transcript: bytes) -> None:
        """The study's new state and head of its transcript."""
        self._connection.execute(
            update(studies)
            .where(studies.c.study == study)
            .values(state=codec.encode(state), transcript=transcript)
        )

    def manifests(self, study: str) -> list[Signed]:
        """All versions, oldest first."""
        found = select(manifests.c.signed).where(manifests.c.study == study).order_by(manifests.c.version)
        return [_signed(raw) for raw in self._connection.execute(found).scalars()]

    def add_manifest(self, study: str, version: int, digest: bytes, signed: Signed) -> None:
        """One more version."""
        self._connection.execute(
            manifests.insert().values(
                study=study, version=version, digest=digest, signed=signed.SerializeToString()
            )
        )

    def add_record(
        self, study: str, round_number: int, kind: RecordKind.ValueType, digest: bytes, signed: Signed
    ) -> None:
        """What the coordinator signed; IntegrityError if the round has one of that kind."""
        self._connection.execute(
            records.insert().values(
                study=study, round=round_number, kind=kind, digest=digest, signed=signed.SerializeToString()
            )
        )

    def record(self, study: str, round_number: int, kind: RecordKind.ValueType) -> Signed | None:
        """The round's record of that kind."""
        found = select(records.c.signed).where(
            records.c.study == study, records.c.round == round_number, records.c.kind == kind
        )
        raw = self._connection.execute(found).scalar_one_or_none()
        return None if raw is None else _signed(raw)

    def put_post(self, study: str, round_number: int, kind: str, site: str, signed: Signed) -> None:
        """What a site signed, in place of an earlier one."""
        key = (
            (posts.c.study == study)
            & (posts.c.round == round_number)
            & (posts.c.kind == kind)
            & (posts.c.site == site)
        )
        raw = signed.SerializeToString()
        if self._connection.execute(update(posts).where(key).values(signed=raw)).rowcount == 0:
            self._connection.execute(
                posts.insert().values(study=study, round=round_number, kind=kind, site=site, signed=raw)
            )

    def post(self, study: str, round_number: int, kind: str, site: str) -> Signed | None:
        """The site's post of that kind in the round."""
        found = select(posts.c.signed).where(
            posts.c.study == study,
            posts.c.round == round_number,
            posts.c.kind == kind,
            posts.c.site == site,
        )
        raw = self._connection.execute(found).scalar_one_or_none()
        return None if raw is None else _signed(raw)

    def last_post(self, study: str, kind: str, site: str) -> Signed | None:
        """The site's post of that kind in the last round in which it made one."""
        found = (
            select(posts.c.signed)
            .where(posts.c.study == study, posts.c.kind == kind, posts.c.site == site)
            .order_by(posts.c.round.desc())
            .limit(1)
        )
        raw = self._connection.execute(found).scalar_one_or_none()
        return None if raw is None else _signed(raw)

    def round_posts(self, study: str, round_number: int, kind: str) -> dict[str, Signed]:
        """All sites' posts of that kind in the round."""
        found = select(posts.c.site, posts.c.signed).where(
            posts.c.study == study, posts.c.round == round_number, posts.c.kind == kind
        )
        made = {row.site: row.signed for row in self._connection.execute(found)}
        return {site: _signed(made[site]) for site in sorted(made)}

    def all_posts(self, study: str, round_number: int) -> dict[str, dict[str, Signed]]:
        """Everything that is stored of the round, by kind and site, in order."""
        found = select(posts.c.kind, posts.c.site, posts.c.signed).where(
            posts.c.study == study, posts.c.round == round_number
        )
        made: dict[str, dict[str, Signed]] = {}
        for row in sorted(self._connection.execute(found), key=lambda row: (row.kind, row.site)):
            made.setdefault(row.kind, {})[row.site] = _signed(row.signed)
        return made

    def posts_of(
        self, study: str, round_number: int, kind: str, sites: Sequence[str]
    ) -> list[tuple[str, Signed]]:
        """The posts of that kind by those of ``sites`` that made one, in their order."""
        found = select(posts.c.site, posts.c.signed).where(
            posts.c.study == study,
            posts.c.round == round_number,
            posts.c.kind == kind,
            posts.c.site.in_(sites),
        )
        made = {row.site: row.signed for row in self._connection.execute(found)}
        return [(site, _signed(made[site])) for site in sites if site in made]

    def drop_posts(self, study: str, round_number: int, kinds: Sequence[str]) -> None:
        """Forget what sites posted of those kinds in the round."""
        self._connection.execute(
            delete(posts).where(
                posts.c.study == study, posts.c.round == round_number, posts.c.kind.in_(kinds)
            )
        )

    def open_round(self, study: str, round_number: int, now: float) -> None:
        """Begin a round's figures."""
        self._connection.execute(
            rounds.insert().values(
                study=study,
                round=round_number,
                opened_at=now,
                contributors="",
                aborted=False,
                reason="",
                bytes_up=0,
                bytes_down=0,
            )
        )

    def _change_round(self, study: str, round_number: int, **values: object) -> None:
        self._connection.execute(
            update(rounds).where(rounds.c.study == study, rounds.c.round == round_number).values(**values)
        )

    def plan_round(self, study: str, round_number: int, now: float) -> None:
        """When the plan was made."""
        self._change_round(study, round_number, planned_at=now)

    def close_round(self, study: str, round_number: int, contributors: tuple[str, ...]) -> None:
        """Who is in U."""
        self._change_round(study, round_number, contributors=" ".join(contributors))

    def report_round(self, study: str, round_number: int, now: float) -> None:
        """When the last report came."""
        self._change_round(study, round_number, reported_at=now)

    def abort_round(self, study: str, round_number: int, reason: str) -> None:
        """Why the round has no sum."""
        # PostgreSQL's text has no NUL, and the reason may be a caller's.
        self._change_round(study, round_number, aborted=True, reason=reason.replace("\0", " "))

    def add_traffic(self, study: str, round_number: int, up: int, down: int) -> None:
        """Count bytes to and from sites."""
        self._change_round(
            study, round_number, bytes_up=rounds.c.bytes_up + up, bytes_down=rounds.c.bytes_down + down
        )

    def history(self, study: str) -> list[RoundFigures]:
        """Figures of all rounds so far."""
        rows = self._connection.execute(
            select(rounds).where(rounds.c.study == study).order_by(rounds.c.round)
        )
        return [
            RoundFigures(
                row.round,
                row.opened_at,
                row.planned_at,
                row.reported_at,
                tuple(row.contributors.split()),
                row.aborted,
                row.reason,
                row.bytes_up,
                row.bytes_down,
            )
            for row in rows
        ]


def require_record(signed: Signed | None, what: str) -> Signed:
    """A record that must be stored; FormatError if the database lacks it."""
    if signed is None:
        raise FormatError(f"the database lacks the {what}", fix="Restore it from a backup")
    return signed
