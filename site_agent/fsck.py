"""``site fsck``: whether what is on disk holds together. Changes nothing; works whether or not the agent runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from sqlalchemy import Connection, select

from cipherward.checking import Findings, looked_at_twice
from cipherward.clock import SystemClock
from cipherward.crypto import merkle
from cipherward.crypto.labels import Label
from cipherward.crypto.manifest import verify_manifest, verify_successor
from cipherward.crypto.pki.member_files import read_anchor
from cipherward.crypto.pki.site_keys import load_sealing_key
from cipherward.crypto.pki.store import load_member
from cipherward.crypto.quorum_records import SEALED_SHARE_BYTES
from cipherward.crypto.records import Plan, StudyTrust, verify_ending, verify_plan, verify_round_record
from cipherward.crypto.signing import parse, record_digest
from cipherward.crypto.suites.payload import Layout, upload_sizes
from cipherward.crypto.transcript import transcript_start
from cipherward.database import database_problems, reading
from cipherward.durable import interrupted
from cipherward.errors import EnvironmentProblem, FormatError, VerificationError
from cipherward.ids import Role
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.round_pb2 import Commit, PlanRecord
from cipherward.site_agent.journal.journal import Entry, Journal
from cipherward.site_agent.journal.outbox import Outbox
from cipherward.site_agent.ledger import chain
from cipherward.site_agent.ledger.patients import PatientKey
from cipherward.site_agent.ledger.tables import events
from cipherward.site_agent.state.folder import MIGRATIONS, SiteFolder
from cipherward.site_agent.state.models import ModelStore
from cipherward.site_agent.state.studies import StudyRow, StudyStore, Versions
from cipherward.site_agent.state.tables import manifests
from cipherward.site_agent.training.metrics import METRICS

_SECRETS = (
    "tls.key",
    "signing.key",
    "sealing.key",
    "patient.key",
    "state.db",
    "state.db-wal",
    "state.db-shm",
)


def check(root: Path) -> Findings:
    """What is wrong in a site's folder. Raises EnvironmentProblem if no agent has run there."""
    folder = SiteFolder(root)
    if not folder.database.exists():
        raise EnvironmentProblem(
            f"{root} has no {folder.database.name}", why="no site agent has run there", fix="Check --dir"
        )
    return looked_at_twice(lambda: _look(folder))


def _look(folder: SiteFolder) -> Findings:
    found = Findings()
    found.modes(_private(folder))
    if not found.problems:  # a key that others may read is refused, which would be said twice
        with found.about("keys"):
            member = load_member(folder.root, Role.SITE, SystemClock().now())
            load_sealing_key(folder.root, member.credential.sealing_key)
    _left_over(folder, found)
    with (
        found.about("database"),
        reading(folder.database_url, MIGRATIONS, "cannot check the site's database") as connection,
    ):
        found.problems += database_problems(connection)
        before = len(found.problems)
        with found.about("ledger"):
            chain.verify(connection)
        chained = len(found.problems) == before
        if not any(line.startswith(f"{folder.patient_key}:") for line in found.problems):
            with found.about(str(folder.patient_key)):
                _patient_key(folder, connection)
        with found.about("studies"):
            store = StudyStore(connection.engine)
            for name in store.names():
                _study(folder, connection, store, name, found, chained=chained)
    return found


def _private(folder: SiteFolder) -> Iterator[Path]:
    yield from (folder.root / name for name in _SECRETS)
    for below in (folder.shared_keys, folder.models, folder.root / "outbox"):
        yield below
        yield from sorted(path for path in below.rglob("*") if path.is_file())


def _left_over(folder: SiteFolder, found: Findings) -> None:
    for path in interrupted(folder.root, SystemClock().now()):
        found.notes.append(f"{path}: its writing was interrupted; the next start removes it")


def _patient_key(folder: SiteFolder, connection: Connection) -> None:
    query = select(events.c.details).where(events.c.kind == chain.Kind.REGISTER.value)
    details = connection.execute(query.order_by(events.c.sequence.desc()).limit(1)).scalar()
    if details is None and not folder.patient_key.exists():
        return  # made when the first data set is registered
    key = PatientKey.read(folder.patient_key)
    if details is not None and json.loads(details)["key"] != key.check_value().hex():
        raise VerificationError(
            "the patient key is not the one that the ledger was made with",
            fix="Restore the key file from the site's backup",
        )


def _study(
    folder: SiteFolder,
    connection: Connection,
    store: StudyStore,
    name: str,
    found: Findings,
    *,
    chained: bool,
) -> None:
    """A study's manifests, model, and rounds. ``chained``: the ledger's chain holds, so that rounds can be
    compared with it."""
    before = len(found.problems)
    with found.about(f"manifests of {name}"):
        versions = _manifests(folder, connection, name)
    row = store.row(name)
    if len(found.problems) > before or row is None or not versions.trusts:
        return  # refused before it was ever accepted, or nothing to check the rounds with
    models = ModelStore(folder.models)
    with found.about(f"model of {name}"):
        models.get(row.model_digest)
    transcript: bytes = transcript_start(name, versions.trusts[0].digest)
    with found.about(f"journal of {name}"):
        for entry in Journal(connection.engine, name, SystemClock()).history():
            before, what = len(found.problems), f"round {entry.round} of {name}"
            trust = versions.in_force(entry.round)
            with found.about(what):
                transcript = _ending(entry, trust, row, transcript)
            if len(found.problems) > before:
                return  # the rounds after it hang in the air
            if chained:
                with found.about(what):
                    _ledgered(connection, name, row, entry)
            with found.about(what):
                _outbox(folder, trust, entry)
        if transcript != row.transcript:
            found.problems.append(f"transcript of {name}: it is not the hash of the rounds on record")
    _ended_outboxes(folder, row, found)


def _manifests(folder: SiteFolder, connection: Connection, name: str) -> Versions:
    anchor = read_anchor(folder.root)
    query = select(manifests).where(manifests.c.study == name).order_by(manifests.c.version)
    trusts: list[StudyTrust] = []
    for row in connection.execute(query):
        trust = verify_manifest(_stored(row.signed), anchor)
        if (trust.manifest.study, trust.manifest.version, trust.digest) != (name, row.version, row.digest):
            raise VerificationError(f"version {row.version} is another manifest than was accepted")
        if trusts:
            verify_successor(trusts[-1], trust)
        elif row.version != 1:
            raise FormatError(f"versions before {row.version} are missing")
        trusts.append(trust)
    return Versions(tuple(trusts))


def _ending(entry: Entry, trust: StudyTrust, row: StudyRow, before: bytes) -> bytes:
    """Verify the round's records again; the transcript after it."""
    if entry.closing_record is None and entry.round > row.transcript_round:
        return before  # in progress

    def plan() -> Plan:
        opening = _stored(entry.round_record)
        verify_round_record(opening, trust, entry.round)
        opened = record_digest(Label.ROUND_RECORD, opening)
        return verify_plan(_stored(entry.plan_record), trust, opened, entry.round)

    after = verify_ending(_stored(entry.closing_record), trust, entry.round, before, plan).transcript
    if after != entry.transcript:
        raise VerificationError("the transcript beside its closing record is another one")
    return after


def _stored(content: bytes | None) -> Signed:
    if content is None:
        raise FormatError("a record of it is missing", fix="Restore the newest backup")
    return parse(content, Signed, "record on disk")


def _ledgered(connection: Connection, study: str, row: StudyRow, entry: Entry) -> None:
    """What was trained was charged, and the ledger that a commit was signed with is a part of this one. Neither is
    seen from the chain itself if its newest events are cut off."""
    if entry.update_digest is not None:
        charged = select(events.c.sequence).where(
            events.c.kind == chain.Kind.RESERVE.value,
            events.c.dataset == row.data_set,
            events.c.study == study,
            events.c.round == entry.round,
        )
        if connection.execute(charged).first() is None:
            raise VerificationError(
                "the ledger has no reservation for it, and it was trained",
                fix="Restore the newest backup; training on would spend privacy twice",
            )
    if entry.commit_record is not None:
        commit = parse(_stored(entry.commit_record).payload, Commit, "commit on disk")
        head = select(events.c.head).where(events.c.sequence == commit.ledger_sequence)
        if connection.execute(head).scalar() != commit.ledger_head:
            raise VerificationError(
                f"the ledger is not the one that its commit was signed with, at event {commit.ledger_sequence}",
                fix="Restore the newest backup; training on would spend privacy twice",
            )


def _outbox(folder: SiteFolder, trust: StudyTrust, entry: Entry) -> None:
    """The files of a round in progress are those that the journal names."""
    if entry.closing_record is not None or entry.update_digest is None:
        return
    outbox = Outbox(folder.outbox(trust.manifest.study, entry.round))
    outbox.update(entry.update_digest)
    if not (entry.attempt and entry.ciphertext_root):
        return
    length = Layout(trust.manifest.parameter_count, METRICS).length
    read = partial(outbox.chunks, entry.attempt, upload_sizes(trust.params, length))
    _same_root(f"the chunks of attempt {entry.attempt}", read(), entry.ciphertext_root)
    if entry.share_root:
        members = len(PlanRecord.FromString(_stored(entry.plan_record).payload).joins)
        shares = outbox.shares(entry.attempt, [SEALED_SHARE_BYTES] * members)
        _same_root(f"the shares of attempt {entry.attempt}", shares, entry.share_root)


def _same_root(what: str, pieces: Iterator[bytes], root: bytes) -> None:
    if merkle.root([merkle.leaf_hash(piece) for piece in pieces]) != root:
        raise EnvironmentProblem(
            f"{what} in the outbox are damaged",
            why="their root differs from the journal's",
            fix="The agent encrypts them again by itself",
        )


def _ended_outboxes(folder: SiteFolder, row: StudyRow, found: Findings) -> None:
    for path in folder.ended_outboxes(row.study, row.transcript_round):
        found.notes.append(f"{path}: its round is over; the next start removes it")
