"""The store and the blobs as an auditor reads them: beside a running service, without writing to either.

Each look is one snapshot and short, so that the service can go on. What it shows of a round that has ended never
changes, except that the ciphertexts of old rounds are thrown away.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cipherward.coordinator.blobs.blobs import Blobs
from cipherward.coordinator.daemon.folder import blobs_url
from cipherward.coordinator.daemon.inspect import stored_url
from cipherward.coordinator.daemon.view import sum_set, update_prefix
from cipherward.coordinator.rounds.state import State
from cipherward.coordinator.store.chunks import ChunkSet, Place
from cipherward.coordinator.store.database import MIGRATIONS, Transaction
from cipherward.coordinator.store.studies import COMMIT, REPORT
from cipherward.crypto.history import RoundEvidence
from cipherward.database import reading
from cipherward.errors import CipherwardError, FormatError
from cipherward.ids import DIGEST_BYTES
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.coordinator_pb2 import RECORD_KIND_CLOSE, RECORD_KIND_PLAN, RECORD_KIND_ROUND


class Gone(Exception):
    """The service threw the ciphertexts away while they were read: the round is no longer kept."""


@dataclass(frozen=True, slots=True)
class StoredStudy:
    """A study at one moment."""

    study: str
    round: int
    """The newest."""
    ended: int
    """The newest that had a close or abort record."""
    transcript: bytes
    """After it, as the coordinator has it."""
    state: State


@dataclass(frozen=True, slots=True)
class Run:
    """Chunks that lie one behind the other in one blob."""

    first: int
    blob: str
    sizes: array[int]
    leaves: bytes


class KeptSet:
    """The chunks of one update or sum: where they lie, how long they are, their leaf hashes. 36 bytes a chunk."""

    def __init__(self, stored: ChunkSet) -> None:
        self.name = stored.name
        self.runs = [
            Run(part.first, part.blob, array("I", part.sizes), b"".join(part.leaves))
            for part in stored.segments
        ]

    @property
    def count(self) -> int:
        """Chunks, if none is missing in between."""
        return self.runs[-1].first + len(self.runs[-1].sizes) if self.runs else 0

    @property
    def size(self) -> int:
        """Bytes of all chunks."""
        return sum(sum(run.sizes) for run in self.runs)

    def described(self) -> Iterator[tuple[int, int, bytes]]:
        """Index, size and leaf hash of each chunk, in order."""
        for run in self.runs:
            for at, size in enumerate(run.sizes):
                yield run.first + at, size, run.leaves[DIGEST_BYTES * at : DIGEST_BYTES * (at + 1)]


@dataclass(frozen=True, slots=True)
class RoundLook:
    """What the store has of one round: its records, and the ciphertexts that are kept."""

    evidence: RoundEvidence
    posts: Mapping[str, Mapping[str, Signed]]
    """All that sites posted, by kind and site."""
    updates: Mapping[tuple[str, int], KeptSet]
    """By site and attempt."""
    total: KeptSet


class Source:
    """One coordinator's store and blobs."""

    def __init__(self, folder: Path, database: str = "", blobs: str = "") -> None:
        """URLs default to the folder's. EnvironmentProblem if there is no store."""
        self._url = stored_url(folder, database)
        self._blobs = Blobs(blobs or blobs_url(folder))

    @contextmanager
    def _look(self) -> Iterator[Transaction]:
        with reading(self._url, MIGRATIONS, "the coordinator's database cannot be read") as connection:
            yield Transaction.on(connection)

    def studies(self) -> list[StoredStudy]:
        """All studies, in the order of their names. FormatError if they cannot be read."""
        found = []
        with self._look() as t:
            try:
                rows = t.studies.all()
            except (ValueError, KeyError) as error:
                raise FormatError("the coordinator's list of studies is damaged") from error
            for row in rows:
                number = row.state.round
                closed = t.studies.record(row.study, number, RECORD_KIND_CLOSE) is not None
                ended = number if closed else number - 1
                found.append(StoredStudy(row.study, number, ended, row.transcript, row.state))
        return found

    def manifests(self, study: str) -> list[Signed]:
        """All versions of its manifest, oldest first; DecodeError for one that cannot be read."""
        with self._look() as t:
            return t.studies.manifests(study)

    def ending(self, study: str, number: int) -> Signed | None:
        """The record that ended the round."""
        with self._look() as t:
            return t.studies.record(study, number, RECORD_KIND_CLOSE)

    def round(self, study: str, number: int) -> RoundLook:
        """What there is of that round."""
        with self._look() as t:
            posts = t.studies.all_posts(study, number)
            evidence = RoundEvidence(
                number,
                t.studies.record(study, number, RECORD_KIND_ROUND),
                t.studies.record(study, number, RECORD_KIND_PLAN),
                t.studies.record(study, number, RECORD_KIND_CLOSE),
                posts.get(COMMIT, {}),
                posts.get(REPORT, {}),
            )
            prefix = update_prefix(study, number)
            updates = {}
            for name in t.chunks.names(prefix):
                site, _, attempt = name.removeprefix(prefix).partition("/")
                updates[site, int(attempt)] = KeptSet(t.chunks.load(name))
            return RoundLook(evidence, posts, updates, KeptSet(t.chunks.load(sum_set(study, number))))

    def chunks(self, kept: KeptSet, ahead: int) -> Iterator[bytes]:
        """The chunks in order, read ``ahead`` bytes at a time, or one where it is larger.

        Raises EnvironmentProblem or FormatError for a blob that is missing or cut short, Gone if the store does
        not have the set any more either.
        """
        for run in kept.runs:
            first = start = 0
            while first < len(run.sizes):
                last, end = first, start
                while last < len(run.sizes) and (last == first or end + run.sizes[last] - start <= ahead):
                    end += run.sizes[last]
                    last += 1
                content = memoryview(self._read(kept, Place(run.blob, start, end)))
                at = 0
                for size in run.sizes[first:last]:
                    yield bytes(content[at : at + size])
                    at += size
                first, start = last, end

    def _read(self, kept: KeptSet, place: Place) -> bytes:
        try:
            return self._blobs.read(place)
        except CipherwardError:
            with self._look() as t:
                if t.chunks.count(kept.name) == 0:
                    raise Gone from None
            raise
