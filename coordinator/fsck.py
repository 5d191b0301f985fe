"""``coordinator fsck``: whether what is on disk holds together. Changes nothing; works whether or not the service
runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Connection, Row, select

from cipherward.checking import Findings, looked_at_twice
from cipherward.clock import SystemClock
from cipherward.coordinator.blobs.blobs import Blobs
from cipherward.coordinator.daemon.folder import BLOBS, blobs_url
from cipherward.coordinator.daemon.inspect import stored_url
from cipherward.coordinator.daemon.manifests import read_manifest
from cipherward.coordinator.daemon.studies import rules_of
from cipherward.coordinator.daemon.view import Version, share_set, sum_set, update_set
from cipherward.coordinator.rounds import codec
from cipherward.coordinator.rounds.state import Phase, State, StudyRules
from cipherward.coordinator.store import schema
from cipherward.coordinator.store.chunks import ChunkSet
from cipherward.coordinator.store.database import MIGRATIONS, Transaction
from cipherward.coordinator.store.studies import COMMIT, REPORT, require_record
from cipherward.crypto import merkle
from cipherward.crypto.labels import Label
from cipherward.crypto.pki import member_files
from cipherward.crypto.pki.anchor import Anchor
from cipherward.crypto.pki.armour import Kind, unarmour_signed
from cipherward.crypto.pki.credentials import Credential, read_credential
from cipherward.crypto.pki.store import load_member
from cipherward.crypto.records import (
    Closed,
    Plan,
    verify_commit,
    verify_ending,
    verify_model_report,
    verify_plan,
    verify_round_record,
)
from cipherward.crypto.signing import parse, record_digest
from cipherward.crypto.transcript import transcript_start
from cipherward.database import database_problems, reading
from cipherward.durable import interrupted, read_file
from cipherward.errors import CipherwardError, FormatError
from cipherward.ids import Role
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.coordinator_pb2 import RECORD_KIND_CLOSE, RECORD_KIND_PLAN, RECORD_KIND_ROUND
from cipherward.proto.v1.round_pb2 import Commit, RelayItem

_PLANNED = (Phase.UPLOAD, Phase.ACKNOWLEDGE, Phase.SUM, Phase.UNSEAL, Phase.RELEASE)
_CLOSED = (Phase.UNSEAL, Phase.RELEASE)


@dataclass(frozen=True, slots=True)
class Places:
    """Where the store and the blobs are; empty: in the coordinator's folder."""

    folder: Path
    database: str = ""
    blobs: str = ""


def check(places: Places) -> Findings:
    """What is wrong. Raises EnvironmentProblem if there is no store, OutageError if its server does not answer."""
    stored_url(places.folder, places.database)
    return looked_at_twice(lambda: _look(places))


def _look(places: Places) -> Findings:
    found = Findings()
    found.modes(places.folder / name for name in (member_files.TLS_KEY, member_files.SIGNING_KEY))
    if not found.problems:  # a key that others may read is refused, which would be said twice
        with found.about("keys"):
            load_member(places.folder, Role.COORDINATOR, SystemClock().now())
    for path in interrupted(places.folder, SystemClock().now()):
        found.notes.append(f"{path}: its writing was interrupted; the next start removes it")
    url = stored_url(places.folder, places.database)
    with (
        found.about("database"),
        reading(url, MIGRATIONS, "cannot check the coordinator's database") as connection,
    ):
        found.problems += database_problems(connection)
        looking = _Looking(connection, found)
        if not places.blobs and not (places.folder / BLOBS).is_dir():
            found.problems.append(f"{places.folder / BLOBS}: it is missing, and every chunk with it")
        else:
            looking.chunks(Blobs(places.blobs or blobs_url(places.folder)))
        with found.about("studies"):
            looking.studies(places.folder)
    return found


@dataclass
class _Looking:
    """One pass over the store."""

    connection: Connection
    found: Findings
    damaged: set[str] = field(default_factory=set)
    """Chunk sets that are named already."""

    @property
    def t(self) -> Transaction:
        return Transaction.on(self.connection)

    # Chunks

    def chunks(self, blobs: Blobs) -> None:
        """Every chunk that the store knows is where it says, and has its leaf hash."""
        names: list[str] = []
        with self.found.about("segments"):
            names = self.t.chunks.names("")
        used: set[str] = set()
        for name in names:
            before = len(self.found.problems)
            with self.found.about(name):
                stored = self.t.chunks.load(name)
                used |= {part.blob for part in stored.segments}
                self.found.problems += [f"{name}: {problem}" for problem in _chunks(blobs, stored)]
            if len(self.found.problems) > before:
                self.damaged.add(name)
        with self.found.about("blobs"):
            for name in blobs.stray(used):
                self.found.notes.append(f"blob {name}: it belongs to nothing; the next start removes it")

    def whole(self, name: str, what: str, count: int, root: bytes, *, needed: bool) -> None:
        """The set, if it is still kept, has that many chunks and that root. ``needed``: it must be there."""
        if name in self.damaged:
            return
        stored = self.t.chunks.load(name)
        if stored.count != count and (stored.count or needed):
            self.found.problems.append(f"{name}: {stored.count} of its {count} chunks are on record")
        elif stored.count and merkle.root(stored.leaves()) != root:
            self.found.problems.append(f"{name}: it is not {what}")

    # Studies

    def studies(self, folder: Path) -> None:
        """Manifests, state, records and posts of each study."""
        anchor = member_files.read_anchor(folder)
        text = read_file(folder / member_files.CREDENTIAL)
        own = read_credential(unarmour_signed(Kind.CREDENTIAL, text), anchor)
        for row in self.connection.execute(select(schema.studies).order_by(schema.studies.c.study)):
            before = len(self.found.problems)
            with self.found.about(f"state of {row.study}"):
                state = codec.decode(row.state)
            with self.found.about(f"manifests of {row.study}"):
                versions = self._manifests(row.study, anchor, own)
            if len(self.found.problems) == before:
                _Study(self, row.study, state, versions, rules_of(versions)).look(row)
        with self.found.about("relayed items"):
            self._relayed()

    def _manifests(self, study: str, anchor: Anchor, own: Credential) -> list[Version]:
        table = schema.manifests
        query = select(table).where(table.c.study == study).order_by(table.c.version)
        versions: list[Version] = []
        for number, row in enumerate(self.connection.execute(query), 1):
            version = read_manifest(parse(row.signed, Signed, "manifest"), anchor, own)
            if (version.trust.manifest.study, version.number, version.trust.digest) != (
                study,
                number,
                row.digest,
            ):
                raise FormatError(f"version {number} is missing, or another one lies in its place")
            versions.append(version)
        if not versions:
            raise FormatError("there is none")
        return versions

    def _relayed(self) -> None:
        for row in self.connection.execute(select(schema.relay)):
            with self.found.about(row.chunk_set):
                item = parse(parse(row.signed, Signed, "relayed item").payload, RelayItem, "relayed item")
                what = f"what {row.sender} sealed for {row.receiver}"
                self.whole(row.chunk_set, what, item.chunk_count, item.body_root, needed=True)


def _chunks(blobs: Blobs, stored: ChunkSet) -> Iterator[str]:
    """What of the chunk set is not on disk as it was acknowledged."""
    expected = 0
    for part in stored.segments:
        if part.first != expected:
            yield f"chunk {expected} is missing"
        expected = part.end
        if len(part.leaves) != len(part.sizes):
            raise FormatError(
                f"the segment at chunk {part.first} has another number of digests than of sizes"
            )
    numbers = [(part, number) for part in stored.segments for number in range(part.first, part.end)]
    unreadable = None
    for (part, number), place, leaf in zip(numbers, stored.places(), stored.leaves(), strict=True):
        if part is unreadable:
            continue  # one line for a blob that is gone, whatever was in it
        try:
            if merkle.leaf_hash(blobs.read(place)) != leaf:
                yield f"chunk {number} is not what was stored"
        except CipherwardError as error:
            unreadable = part
            yield f"chunk {number}: {error}"


@dataclass(frozen=True)
class _Study:
    """One study's rounds, in order."""

    looking: _Looking
    name: str
    state: State
    versions: list[Version]
    rules: StudyRules

    def look(self, row: Row[tuple[object, ...]]) -> None:
        found = self.looking.found
        transcript: bytes = transcript_start(self.name, self.versions[0].trust.digest)
        with found.about(row.weights):
            self._weights(row.weights)
        for number in range(1, self.state.round + 1):
            before = len(found.problems)
            with found.about(f"round {number} of {self.name}"):
                transcript = self._round(number, transcript)
            if len(found.problems) > before:
                return  # the rounds after it hang in the air
        if transcript != row.transcript:
            found.problems.append(f"transcript of {self.name}: it is not the hash of the rounds on record")

    def _weights(self, name: str) -> None:
        stored = self.looking.t.chunks.load(name)
        size = sum(sum(part.sizes) for part in stored.segments)
        wanted = 4 * self.versions[0].trust.manifest.parameter_count
        if size != wanted and name not in self.looking.damaged:
            raise FormatError(f"{size} of its {wanted} bytes are on record")

    def _is_at(self, number: int, phases: tuple[Phase, ...]) -> bool:
        return number == self.state.round and self.state.running and self.state.phase in phases

    def _round(self, number: int, before: bytes) -> bytes:
        """Verify what was signed in the round as a site does; the transcript after it."""
        version = next(v for v in self.versions if v.number == self.rules.at(number).version)
        opening = self._record(number, RECORD_KIND_ROUND, "round record", Label.ROUND_RECORD)
        planned = self._record(number, RECORD_KIND_PLAN, "plan record", Label.PLAN_RECORD)
        closing = self._record(
            number, RECORD_KIND_CLOSE, "close record", Label.CLOSE_RECORD, Label.ABORT_RECORD
        )
        if opening is None and closing is None and self.state.phase is not Phase.KEYS:
            require_record(opening, "round record")
        if planned is None and self._is_at(number, _PLANNED):
            require_record(planned, "plan record")
        if closing is None and (number < self.state.round or self._is_at(number, _CLOSED)):
            require_record(closing, "close record")
        plan: Plan | None = None
        if opening is not None:
            verify_round_record(opening, version.trust, number)
        if opening is not None and planned is not None:
            plan = verify_plan(planned, version.trust, record_digest(Label.ROUND_RECORD, opening), number)
        after = before
        if closing is not None:

            def required() -> Plan:
                if plan is None:
                    raise FormatError("the database lacks the records before the close record")
                return plan

            ending = verify_ending(closing, version.trust, number, before, required)
            after = ending.transcript
            if isinstance(ending, Closed):
                self._sum(number, ending)
        if plan is not None:
            self._commits(number, version, plan)
        self._reports(number, version)
        return after

    def _record(self, number: int, kind: int, what: str, *labels: Label) -> Signed | None:
        table = schema.records
        query = select(table.c.signed, table.c.digest).where(
            table.c.study == self.name, table.c.round == number, table.c.kind == kind
        )
        row = self.looking.connection.execute(query).one_or_none()
        if row is None:
            return None
        signed: Signed = parse(row.signed, Signed, what)
        if row.digest not in [record_digest(label, signed) for label in labels]:
            raise FormatError(f"the {what} is not the one that was signed", why="its digest is another one")
        return signed

    def _commits(self, number: int, version: Version, plan: Plan) -> None:
        """Committed updates, as far as they are still kept, are what their sites signed for."""
        posts = self.looking.t.studies.round_posts(self.name, number, COMMIT)
        here = self._is_at(number, _PLANNED)
        if here:
            for site, committed in self.state.commits.items():
                signed = require_record(posts.get(site), f"commit of {site}")
                if record_digest(Label.COMMIT, signed) != committed.record:
                    raise FormatError(f"the commit of {site} is another one than was acknowledged")
        for site, signed in posts.items():
            commit: Commit = verify_commit(signed, version.trust, plan, site)
            key = (self.name, number, site, commit.attempt)
            needed = here and site in self.state.commits
            what = f"what {site} committed"
            self.looking.whole(
                update_set(*key), what, commit.chunk_count, commit.ciphertext_root, needed=needed
            )
            if commit.share_root:
                count = len(plan.members)
                self.looking.whole(share_set(*key), what, count, commit.share_root, needed=needed)

    def _sum(self, number: int, ending: Closed) -> None:
        self.looking.whole(
            sum_set(self.name, number),
            "the sum that the close record names",
            ending.record.sum_chunk_count,
            ending.record.sum_root,
            needed=self._is_at(number, _CLOSED),
        )

    def _reports(self, number: int, version: Version) -> None:
        for site, signed in self.looking.t.studies.round_posts(self.name, number, REPORT).items():
            verify_model_report(signed, version.trust, number, site)
