"""``site policy check``: a manifest file against this hospital's policy and ledger, before any study runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cipherward.crypto.manifest import verify_manifest
from cipherward.crypto.pki.armour import Kind, unarmour_signed
from cipherward.crypto.pki.member_files import read_anchor
from cipherward.crypto.trust_statement import trust_statement
from cipherward.durable import read_file
from cipherward.site_agent.daemon.hospital import choose_data_set, installed_digest, study_facts
from cipherward.site_agent.offline import Offline
from cipherward.site_agent.policy import check
from cipherward.site_agent.training.client import TaskRef, Trainer


def check_file(site: Offline, manifest: Path | None) -> dict[str, Any]:
    """``{"allowed", "study", "trust", "data_set", "findings"}``; without a manifest, that the policy could be read.

    A data set that is not registered yet is registered: delta is judged by its number of patients. Raises
    VerificationError for a manifest that the pinned root did not sign, PolicyError if no data set fits it.
    """
    if manifest is None:
        return {"allowed": True, "study": "", "trust": "", "data_set": "", "findings": []}
    trust = verify_manifest(
        unarmour_signed(Kind.MANIFEST, read_file(manifest)), read_anchor(site.folder.root)
    )
    task = trust.manifest.task
    installed = installed_digest(task.name)
    data_set = choose_data_set(site.policy, task.name)
    if installed is not None and data_set not in {known.name for known in site.ledger.datasets()}:
        _register(site, data_set, TaskRef(task.name, installed))
    found = check(site.policy, study_facts(trust.manifest), data_set, site.ledger, installed_task=installed)
    return {
        "allowed": not found,
        "study": trust.manifest.study,
        "trust": trust_statement(trust.manifest),
        "data_set": data_set,
        "findings": [{"code": finding.code, "line": finding.line} for finding in found],
    }


def _register(site: Offline, data_set: str, task: TaskRef) -> None:
    trainer = Trainer(site.folder.root / "policy-check.sock")
    try:
        trainer.start()
        described = trainer.describe(task, site.policy.dataset(data_set).source)
    finally:
        trainer.close()
    site.ledger.register(data_set, described.patients)
