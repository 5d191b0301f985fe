"""What a site knows, for its own people: ``site status``, ``site export-model``. Reads the site's database; works
while the daemon runs. (``site ledger``: spending.py.)"""

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
from cipherward.crypto.pki.store import load_member
from cipherward.crypto.shared_noise import realised_noise_multiplier
from cipherward.crypto.strategies import SHARED_NOISE
from cipherward.crypto.transcript import model_digest
from cipherward.durable import write_file
from cipherward.errors import CipherwardError, UsageError
from cipherward.ids import Role
from cipherward.site_agent.journal.journal import Entry, Journal
from cipherward.site_agent.offline import Offline
from cipherward.site_agent.spending import data_set_status
from cipherward.site_agent.state.models import ModelStore
from cipherward.site_agent.state.studies import StudyStore, Versions
from cipherward.site_agent.strategy.base import weights_of


def status(site: Offline, clock: Clock) -> dict[str, Any]:
    """Identity and its validity, data sets, and each study with its rounds, figures, refusals and incidents.

    Plain JSON values.
    """
    found: dict[str, Any] = {"site": site.identity.name, "identity": str(site.identity), "problem": ""}
    try:
        member = load_member(site.folder.root, Role.SITE, clock.now())
    except CipherwardError as error:
        found["problem"] = str(error)
    else:
        found["certificate_days_left"] = member.days_left(clock.now())
        found["warnings"] = list(member.warnings(clock.now()))
        found["status_list"] = member.status.newest.number
    found["data_sets"] = [data_set_status(site, known.name) for known in site.ledger.datasets()]
    found["studies"] = [study_status(site.engine, clock, name) for name in site.studies.names()]
    found["incidents"] = [asdict(incident) for incident in site.studies.incidents()]
    return found


def study_status(engine: Engine, clock: Clock, name: str) -> dict[str, Any]:
    """One study. Federated figures carry the study's noise; ``evaluations`` are exact, on this hospital's own
    held-out patients (round 0: the initial model), and stay here."""
    store = StudyStore(engine)
    row, versions = store.row(name), store.versions(name)
    if row is None:
        raise UsageError(f"study {name} is not known here")
    manifest = versions.trusts[-1].manifest if versions else None
    return {
        "study": name,
        "state": row.state,
        "reason": row.reason,
        "data_set": row.data_set,
        "findings": [{"code": code, "line": line} for code, line in store.findings(name)],
        "manifest_version": manifest.version if manifest else 0,
        "planned_rounds": manifest.rounds if manifest else 0,
        "model_round": row.model_round,
        "model_digest": row.model_digest.hex(),
        "transcript_round": row.transcript_round,
        "transcript": row.transcript.hex(),
        "rounds": [
            {**_round(entry), **_noise(entry, versions)} for entry in Journal(engine, name, clock).history()
        ],
        "evaluations": [{"round": number, **figures} for number, figures in store.evaluations(name).items()],
    }


def _noise(entry: Entry, versions: Versions | None) -> dict[str, float | None]:
    """The noise multiplier that the ledger counts, and that of this round's sum; None where each site adds all of its
    own, or the round has no sum."""
    manifest = versions.in_force(entry.round).manifest if versions else None
    if manifest is None or manifest.strategy.name != SHARED_NOISE or not entry.cohort:
        return {"noise_promised": None, "noise_realised": None}
    realised = realised_noise_multiplier(manifest, len(entry.cohort))
    return {"noise_promised": manifest.dp.noise_multiplier, "noise_realised": realised}


def _round(entry: Entry) -> dict[str, Any]:
    return {
        "round": entry.round,
        "step": step(entry),
        "contributors": list(entry.cohort),
        "attempt": entry.attempt,
        "ciphertext_root": entry.ciphertext_root.hex() if entry.ciphertext_root else "",
        "transcript": entry.transcript.hex() if entry.transcript else "",
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


def export_model(site: Offline, study: str, out: Path, *, force: bool) -> dict[str, Any]:
    """Write the study's newest model here: flat float32 as ``.npz`` (array ``weights``) or raw
    little-endian bytes for any other suffix, and what it is to ``OUT.json``. Returns that description: in it
    ``weights_digest`` is of what was written, ``model_digest`` of the state that the sites agreed on, which with
    some strategies has moments besides.

    Raises UsageError for an unknown study or an existing file without ``force``; EnvironmentProblem.
    """
    row, versions = site.studies.row(study), site.studies.versions(study)
    if row is None or versions is None:
        raise UsageError(f"study {study} is not known here", fix="See `cipherward site status`")
    sidecar = out.with_name(out.name + ".json")
    for path in (out, sidecar):
        if path.exists() and not force:
            raise UsageError(f"{path} exists", fix="Choose another name, or add --force")
    manifest = versions.trusts[-1].manifest
    weights = weights_of(ModelStore(site.folder.models).get(row.model_digest), manifest)
    description = {
        "study": study,
        "consortium": manifest.consortium,
        "manifest_digest": versions.trusts[-1].digest.hex(),
        "task": manifest.task.name,
        "task_digest": manifest.task.code_digest.hex(),
        "round": row.model_round,
        "model_digest": row.model_digest.hex(),
        "weights_digest": model_digest(weights).hex(),
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
