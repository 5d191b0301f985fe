"""``site fsck``: whether what is on disk holds together. Changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from sqlalchemy import Engine

from cipherward.clock import SystemClock
from cipherward.crypto import merkle
from cipherward.crypto.labels import Label
from cipherward.crypto.quorum_records import SEALED_SHARE_BYTES
from cipherward.crypto.records import Plan, StudyTrust, verify_ending, verify_plan, verify_round_record
from cipherward.crypto.signing import parse, record_digest
from cipherward.crypto.suites.payload import Layout, upload_sizes
from cipherward.crypto.transcript import transcript_start
from cipherward.database import database_problems
from cipherward.errors import CipherwardError, EnvironmentProblem
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.round_pb2 import PlanRecord
from cipherward.site_agent.journal.journal import Entry, Journal
from cipherward.site_agent.journal.outbox import Outbox
from cipherward.site_agent.ledger.ledger import Ledger
from cipherward.site_agent.state.folder import SiteFolder
from cipherward.site_agent.state.models import ModelStore
from cipherward.site_agent.state.studies import StudyStore
from cipherward.site_agent.training.metrics import METRICS

SECRETS = ("tls.key", "signing.key", "sealing.key", "patient.key", "state.db")


def check(folder: SiteFolder, engine: Engine, ledger: Ledger) -> list[str]:
    """What is wrong, in words; empty if nothing is."""
    problems: list[str] = []

    def attempt(what: str, examine: Callable[[], object]) -> None:
        try:
            examine()
        except CipherwardError as error:
            problems.append(f"{what}: {error}")

    with engine.connect() as connection:
        problems += database_problems(connection)
    attempt("ledger", ledger.verify_chain)
    problems += _modes(folder)
    store, models = StudyStore(engine), ModelStore(folder.models)
    for name in store.names():
        row, versions = store.row(name), store.versions(name)
        if row is None or versions is None:
            continue
        if row.model_round or models.path(row.model_digest).exists():
            attempt(f"model of {name}", partial(models.get, row.model_digest))
        journal = Journal(engine, name, SystemClock())
        transcript: bytes = transcript_start(name, versions.trusts[0].digest)
        for entry in journal.history():
            what = f"round {entry.round} of {name}"
            try:
                transcript = _transcript(entry, versions.in_force(entry.round), transcript)
            except CipherwardError as error:
                problems.append(f"{what}: {error}")
                break
            attempt(what, partial(_outbox, folder, versions.in_force(entry.round), entry))
        else:
            if transcript != row.transcript:
                problems.append(f"transcript of {name}: it is not the hash of the rounds on record")
    return problems


def _modes(folder: SiteFolder) -> Iterator[str]:
    files = [folder.root / name for name in SECRETS]
    files += sorted(folder.shared_keys.glob("*.key"))
    files += sorted(path for path in (folder.root / "outbox").rglob("*") if path.is_file())
    for path in files:
        if path.exists() and path.stat().st_mode & 0o077:
            mode = f"{path.stat().st_mode & 0o777:04o}"
            yield f"{path}: its mode {mode} lets others read it; run: chmod 600 {path}"


def _transcript(entry: Entry, trust: StudyTrust, before: bytes) -> bytes:
    """Verify the round's records again; the transcript after it."""
    if entry.closing_record is None:
        return before

    def plan() -> Plan:
        opening = _stored(entry.round_record)
        verify_round_record(opening, trust, entry.round)
        opened = record_digest(Label.ROUND_RECORD, opening)
        return verify_plan(_stored(entry.plan_record), trust, opened, entry.round)

    return verify_ending(_stored(entry.closing_record), trust, entry.round, before, plan).transcript


def _stored(content: bytes | None) -> Signed:
    return parse(content or b"", Signed, "record on disk")


def _outbox(folder: SiteFolder, trust: StudyTrust, entry: Entry) -> None:
    if entry.closing_record is not None or entry.update_digest is None:
        return
    outbox = Outbox(folder.outbox(trust.manifest.study, entry.round))
    outbox.update(entry.update_digest)
    if not (entry.attempt and entry.ciphertext_root):
        return
    length = Layout(trust.manifest.parameter_count, METRICS).length
    chunks = outbox.chunks(entry.attempt, upload_sizes(trust.params, length))
    _same_root(f"the chunks of attempt {entry.attempt}", chunks, entry.ciphertext_root)
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
