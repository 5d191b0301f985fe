"""What a site knows, for its own people: ``site status``, ``site ledger``, ``site export-model``. Reads the
site's database; works while the daemon runs."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine

from cipherward.clock import Clock
from cipherward.crypto.pki.store import Member
from cipherward.durable import write_file
from cipherward.errors import UsageError
from cipherward.site_agent.journal.journal import Entry, Journal
from cipherward.site_agent.state.folder import SiteFolder
from cipherward.site_agent.state.models import ModelStore
from cipherward.site_agent.state.studies import StudyStore


def status(member: Member, engine: Engine, clock: Clock) -> dict[str, Any]:
    """Identity, and each study with its rounds, figures, refusals and incidents. Plain JSON values."""
    store = StudyStore(engine)
    return {
        "site": str(member.identity),
        "certificate_days_left": member.days_left(clock.now()),
        "warnings": list(member.warnings(clock.now())),
        "status_list": member.status.newest.number,
        "studies": [study_status(engine, clock, name) for name in store.names()],
        "incidents": [asdict(incident) for incident in store.incidents()],
    }


def study_status(engine: Engine, clock: Clock, name: str) -> dict[str, Any]:
    """One study. Federated figures carry the study's noise; local ones are exact and this hospital's own."""
    store = StudyStore(engine)
    row, versions = store.row(name), store.versions(name)
    if row is None:
        raise UsageError(f"study {name} is not known here")
    manifest = versions.trusts[-1].manifest if versions else None
    local = store.evaluations(name)
    return {
        "study": name,
        "state": row.state,
        "reason": row.reason,
        "data_set": row.data_set,
        "findings": [{"code": code, "text": text} for code, text in store.findings(name)],
        "manifest_version": manifest.version if manifest else 0,
        "rounds": manifest.rounds if manifest else 0,
        "model_round": row.model_round,
        "model_digest": row.model_digest.hex(),
        "transcript_round": row.transcript_round,
        "transcript": row.transcript.hex(),
        "history": [_round(entry) for entry in Journal(engine, name, clock).history()],
        "local": [{"round": number, **figures} for number, figures in local.items()],
    }


def _round(entry: Entry) -> dict[str, Any]:
    return {
        "round": entry.round,
        "step": step(entry),
        "contributors": list(entry.cohort),
        "model_digest": entry.model_digest.hex() if entry.model_digest else "",
        "loss": entry.loss,
        "accuracy": entry.accuracy,
        "patients": entry.patients,
        "skipped": entry.skipped or "",
    }


def step(entry: Entry) -> str:
    """How far this site came in the round, in one word."""
    for name, reached in (
        ("aborted", bool(entry.aborted)),
        ("finished", entry.model_digest is not None),
        ("closed", entry.closing_record is not None),
        ("skipped", entry.skipped is not None),
        ("committed", entry.commit_record is not None),
        ("uploading", entry.attempt is not None),
        ("joined", entry.join_record is not None),
        ("trained", entry.update_digest is not None),
        ("training", bool(entry.started)),
    ):
        if reached:
            return name
    return "open"


def export_model(folder: SiteFolder, engine: Engine, study: str, out: Path, *, force: bool) -> dict[str, Any]:
    """Write the study's newest model here: flat float32 as ``.npz`` (array ``weights``) or raw
    little-endian bytes for any other suffix, and what it is to ``OUT.json``. Returns that description.

    Raises UsageError for an unknown study or an existing file without ``force``; EnvironmentProblem.
    """
    store = StudyStore(engine)
    row, versions = store.row(study), store.versions(study)
    if row is None or versions is None:
        raise UsageError(f"study {study} is not known here", fix="See `cipherward site status`")
    sidecar = out.with_name(out.name + ".json")
    for path in (out, sidecar):
        if path.exists() and not force:
            raise UsageError(f"{path} exists", fix="Choose another name, or add --force")
    weights = ModelStore(folder.models).get(row.model_digest)
    manifest = versions.trusts[-1].manifest
    description = {
        "study": study,
        "consortium": manifest.consortium,
        "manifest_digest": versions.trusts[-1].digest.hex(),
        "task": manifest.task.name,
        "task_digest": manifest.task.code_digest.hex(),
        "round": row.model_round,
        "model_digest": row.model_digest.hex(),
        "parameters": int(weights.size),
        "dtype": "float32",
        "order": "named_parameters of the task's model, trainable ones, flattened",
    }
    if out.suffix == ".npz":
        _write_npz(out, weights)
    else:
        write_file(out, weights.astype("<f4").tobytes(), mode=0o600)
    write_file(sidecar, (json.dumps(description, indent=2) + "\n").encode(), mode=0o600)
    return description


def _write_npz(out: Path, weights: NDArray[np.float32]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, weights=weights)
    write_file(out, buffer.getvalue(), mode=0o600)
