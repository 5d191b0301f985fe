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
from cipherward.site_agent.ledger.accountant import LocalAccountant
from cipherward.site_agent.ledger.accounting import NO_PRIVACY, repeated
from cipherward.site_agent.ledger.chain import Kind as LedgerKind
from cipherward.site_agent.offline import Offline
from cipherward.site_agent.policy import StudyFacts, check, limits
from cipherward.site_agent.policy.guarantee import guarantees
from cipherward.site_agent.spending import json_number
from cipherward.site_agent.training.client import TaskRef, Trainer


def check_file(site: Offline, manifest: Path | None) -> dict[str, Any]:
    """Whether this site would take part (``allowed``, ``findings``), who can open an update (``trust``), the
    ``budget`` of the ``data_set`` before and after, and what the study's ``noise`` rests on; without a manifest,
    that the policy could be read.

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
    facts = study_facts(trust.manifest)
    found = check(site.policy, facts, data_set, site.ledger, installed_task=installed)
    return {
        "allowed": not found,
        "study": trust.manifest.study,
        "trust": trust_statement(trust.manifest),
        "data_set": data_set,
        "budget": budget(site, facts, data_set),
        "noise": noise(site, facts, data_set),
        "findings": [{"code": finding.code, "line": finding.line} for finding in found],
    }


def budget(site: Offline, study: StudyFacts, data_set: str) -> dict[str, Any] | None:
    """What the data set has spent, would have spent after the study's unpaid rounds, and how many of them it could
    pay for. None without differential privacy: there is no figure. None inside stands for infinity."""
    if not study.dp:
        return None
    bounds = limits(site.policy, data_set, site.ledger)
    to_pay = max(0, study.rounds - site.ledger.count(LedgerKind.RESERVE, data_set, study.study))
    cost, spent = study.per_round or NO_PRIVACY, site.ledger.spent(data_set, bounds.delta)
    after = site.ledger.cost_of(data_set, repeated(cost, to_pay), bounds.delta) if to_pay else spent
    return {
        "delta": bounds.delta,
        "ceiling": json_number(bounds.ceiling),
        "spent": json_number(spent),
        "rounds_to_pay": to_pay,
        "after": json_number(after),
        "rounds_left": site.ledger.remaining_rounds(data_set, cost, bounds.ceiling, bounds.delta),
    }


def noise(site: Offline, study: StudyFacts, data_set: str) -> dict[str, Any]:
    """Whose noise the study's guarantee rests on, in words and in figures at the policy's delta."""
    delta = limits(site.policy, data_set, site.ledger).delta
    return {
        "kind": "none" if not study.dp else "shared" if study.honest else "local",
        "minimum_cohort": study.minimum_cohort,
        "threshold": study.threshold,
        "colluders": study.colluders,
        "honest": study.honest,
        "line": _noise_line(study),
        "guarantees": [
            {"against": one.against, "noise": one.noise, "epsilon": json_number(one.epsilon)}
            for one in guarantees(study, delta, LocalAccountant())
        ],
    }


def _noise_line(study: StudyFacts) -> str:
    if not study.dp:
        return "Noise: none. No bound on what the models and metrics tell about a patient."
    if not study.honest:
        return f"Noise: {study.strategy}, all of it added here. The guarantee rests on nobody else."
    return (
        f"Noise: {study.strategy}, shared. This site adds 1/{study.honest} of its variance; at least "
        f"{study.minimum_cohort} sites are in a sum, of which {study.colluders} may collude."
    )


def _register(site: Offline, data_set: str, task: TaskRef) -> None:
    trainer = Trainer(site.folder.root / "policy-check.sock")
    try:
        trainer.start()
        described = trainer.describe(task, site.policy.dataset(data_set).source)
    finally:
        trainer.close()
    site.ledger.register(data_set, described.patients)
