"""``coordinator fsck``: whether what is on disk holds together. Changes nothing; works whether or not the service
runs, but a round in progress may move on while it looks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError
from sqlalchemy import Connection

from cipherward.coordinator.blobs.blobs import Blobs
from cipherward.coordinator.daemon.folder import blobs_url
from cipherward.coordinator.daemon.inspect import stored_url
from cipherward.coordinator.daemon.manifests import read_manifest
from cipherward.coordinator.daemon.studies import rules_of
from cipherward.coordinator.daemon.view import Version, sum_set, update_set
from cipherward.coordinator.store.chunks import ChunkSet
from cipherward.coordinator.store.database import MIGRATIONS, Transaction
from cipherward.coordinator.store.studies import COMMIT, StudyRow, require_record
from cipherward.crypto import merkle
from cipherward.crypto.labels import Label
from cipherward.crypto.pki.store import Member
from cipherward.crypto.records import Plan, verify_commit, verify_ending, verify_plan, verify_round_record
from cipherward.crypto.signing import record_digest
from cipherward.crypto.transcript import transcript_start
from cipherward.database import database_problems, reading
from cipherward.errors import CipherwardError, EnvironmentProblem, FormatError
from cipherward.proto.v1.coordinator_pb2 import RECORD_KIND_CLOSE, RECORD_KIND_PLAN, RECORD_KIND_ROUND
from cipherward.proto.v1.round_pb2 import CloseRecord

# What reading something damaged raises: ours, protobuf's, JSON's.
_DAMAGE = (CipherwardError, DecodeError, ValueError, KeyError)


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, CipherwardError) else f"it cannot be read ({type(error).__name__})"


@dataclass(frozen=True, slots=True)
class Places:
    """Where the store and the blobs are; empty: in the coordinator's folder."""

    folder: Path
    database: str = ""
    blobs: str = ""


def check(places: Places, member: Member) -> list[str]:
    """Every problem as a line; none if all holds. Raises EnvironmentProblem if the store cannot be opened."""
    url = stored_url(places.folder, places.database)
    with reading(url, MIGRATIONS, "the coordinator's database cannot be read") as connection:
        return list(_problems(connection, Blobs(places.blobs or blobs_url(places.folder)), member))


def _problems(connection: Connection, blobs: Blobs, member: Member) -> Iterator[str]:
    yield from database_problems(connection)
    t = Transaction.on(connection)
    damaged = set()
    for name in t.chunks.names(""):
        for problem in _chunks(blobs, t.chunks.load(name)):
            damaged.add(name)
            yield f"{name}: {problem}"
    try:
        rows = t.studies.all()
    except _DAMAGE as error:
        yield f"studies: {_said(error)}"
        return
    for row in rows:
        try:
            versions = [
                read_manifest(signed, member.anchor, member.credential)
                for signed in t.studies.manifests(row.study)
            ]
        except _DAMAGE as error:
            yield f"manifests of {row.study}: {_said(error)}"
            continue
        yield from _study(t, row, versions, damaged)


def _chunks(blobs: Blobs, stored: ChunkSet) -> Iterator[str]:
    """What of the chunk set is not on disk as it was acknowledged."""
    expected = 0
    for part in stored.segments:
        if part.first != expected:
            yield f"chunk {expected} is missing"
        expected = part.end
    for index, (place, leaf) in enumerate(zip(stored.places(), stored.leaves(), strict=True)):
        try:
            if merkle.leaf_hash(blobs.read(place)) != leaf:
                yield f"chunk {index} is not what was stored"
        except (EnvironmentProblem, FormatError) as error:
            yield f"chunk {index}: {error}"


def _study(t: Transaction, row: StudyRow, versions: list[Version], damaged: set[str]) -> Iterator[str]:
    rules = rules_of(versions)
    transcript: bytes = transcript_start(row.study, versions[0].trust.digest)
    for number in range(1, row.state.round + 1):
        version = next(v for v in versions if v.number == rules.at(number).version)
        try:
            transcript = _ending(t, row.study, number, version, transcript)
            yield from _roots(t, row.study, number, version, damaged)
        except _DAMAGE as error:
            yield f"round {number} of {row.study}: {_said(error)}"
            return
    if transcript != row.transcript:
        yield f"transcript of {row.study}: it is not the hash of the rounds on record"


def _ending(t: Transaction, study: str, number: int, version: Version, before: bytes) -> bytes:
    """Verify the round's records as a site does; the transcript after it."""
    closing = t.studies.record(study, number, RECORD_KIND_CLOSE)
    if closing is None:
        return before  # in progress

    def plan() -> Plan:
        opening = require_record(t.studies.record(study, number, RECORD_KIND_ROUND), "round record")
        planned = require_record(t.studies.record(study, number, RECORD_KIND_PLAN), "plan record")
        verify_round_record(opening, version.trust, number)
        return verify_plan(planned, version.trust, record_digest(Label.ROUND_RECORD, opening), number)

    return verify_ending(closing, version.trust, number, before, plan).transcript


def _roots(t: Transaction, study: str, number: int, version: Version, damaged: set[str]) -> Iterator[str]:
    """Whether committed updates and the sum, as far as they are still kept, have the roots that were signed."""
    opening = t.studies.record(study, number, RECORD_KIND_ROUND)
    planned = t.studies.record(study, number, RECORD_KIND_PLAN)
    if opening is None or planned is None:
        return
    plan = verify_plan(planned, version.trust, record_digest(Label.ROUND_RECORD, opening), number)
    for site, signed in t.studies.round_posts(study, number, COMMIT).items():
        commit = verify_commit(signed, version.trust, plan, site)
        name = update_set(study, number, site, commit.attempt)
        stored = t.chunks.load(name)
        if stored.count and name not in damaged and merkle.root(stored.leaves()) != commit.ciphertext_root:
            yield f"{name}: it is not what {site} committed"
    closing = t.studies.record(study, number, RECORD_KIND_CLOSE)
    total = t.chunks.load(sum_set(study, number))
    if closing is None or not total.count or total.name in damaged:
        return
    close = CloseRecord.FromString(closing.payload)
    if total.count == close.sum_chunk_count and merkle.root(total.leaves()) != close.sum_root:
        yield f"{total.name}: it is not the sum that the close record names"
