"""The hospital's side of a study: its policy, its data sets, and its ledger, asked before anything is
promised."""

from __future__ import annotations

from cipherward.crypto.records import StudyTrust
from cipherward.crypto.shared_noise import honest_contributors
from cipherward.crypto.strategies import SHARED_NOISE
from cipherward.errors import BudgetError, PolicyError, UsageError
from cipherward.ids import Digest
from cipherward.proto.v1.study_pb2 import Manifest
from cipherward.site_agent.daemon.constants import round_cost
from cipherward.site_agent.daemon.site import Site
from cipherward.site_agent.ledger.accounting import NO_PRIVACY
from cipherward.site_agent.policy import Policy, StudyFacts, check, limits, require
from cipherward.site_agent.tasks.registry import task_digest
from cipherward.site_agent.training.client import TaskRef


def study_facts(manifest: Manifest) -> StudyFacts:
    """What policy looks at."""
    shared = manifest.strategy.name == SHARED_NOISE
    return StudyFacts(
        study=manifest.study,
        version=manifest.version,
        suite=manifest.suite.name,
        parameters=manifest.suite.parameters,
        strategy=manifest.strategy.name,
        task=manifest.task.name,
        task_digest=manifest.task.code_digest,
        sites=tuple(entry.name for entry in manifest.roster),
        minimum_cohort=manifest.minimum_cohort,
        threshold=manifest.threshold,
        colluders=manifest.colluders,
        honest=honest_contributors(manifest) if shared else 0,
        rounds=manifest.rounds,
        dp=not manifest.dp_disabled,
        per_round=round_cost(manifest),
        delta=manifest.dp.delta,
    )


def installed_digest(task: str) -> bytes | None:
    """Of the task's code as installed here; None if it is not."""
    try:
        return task_digest(task)
    except UsageError:
        return None


def choose_data_set(policy: Policy, task: str) -> str:
    """The data set that the policy keeps for this task, else the only one that is open to any task.

    Raises PolicyError if there is none, or no telling which.
    """
    kept = [name for name, rule in policy.datasets.items() if rule.task == task]
    found = kept or [name for name, rule in policy.datasets.items() if rule.task is None]
    if len(found) == 1:
        return found[0]
    raise PolicyError(
        f"no data set of this hospital is for the task {task!r}"
        if not found
        else f"several data sets are for the task {task!r}: {', '.join(sorted(found))}",
        why="policy.toml decides which data a study trains on",
        fix=f'Set task = "{task}" in the one [datasets.NAME] table that it may use',
    )


def register(site: Site, data_set: str, task: TaskRef) -> None:
    """Record who is in the data set now. Its file may have changed since the last round: new patients are
    charged from here on. Patient ids go from the trainer's child to the ledger's keyed digests, and nowhere
    else."""
    described = site.trainer.describe(task, site.policy.dataset(data_set).source)
    known = site.ledger.register(data_set, described.patients)
    site.log.info("data set registered", data_set=data_set, version=known.version, patients=known.patients)


def register_data_sets(site: Site) -> None:
    """At start: the data sets that the policy names, each by the task that it is kept for."""
    for name, rule in site.policy.datasets.items():
        only = next(iter(site.policy.allowed_tasks)) if len(site.policy.allowed_tasks) == 1 else None
        task = rule.task or only
        if task is None:
            continue  # registered when a study brings its task
        digest = installed_digest(task)
        if digest is None:
            raise UsageError(
                f"data set {name} is for the task {task!r}, which is not installed here",
                fix="Install the package that provides it, or correct policy.toml",
            )
        register(site, name, TaskRef(task, digest))


def admit_by_policy(site: Site, trust: StudyTrust) -> str:
    """The data set that the study may train on. Findings are kept for ``site status``.

    Raises PolicyError or BudgetError with all of the hospital's reasons.
    """
    manifest = trust.manifest
    installed = installed_digest(manifest.task.name)
    data_set = choose_data_set(site.policy, manifest.task.name)
    if installed is None:
        raise PolicyError(
            f"the task {manifest.task.name!r} of study {manifest.study} is not installed here",
            fix="Install the package that provides it, if the hospital agrees to take part",
        )
    # By the code that the hospital installed itself, also where the study names another version.
    register(site, data_set, TaskRef(manifest.task.name, installed))
    facts = study_facts(manifest)
    findings = check(site.policy, facts, data_set, site.ledger, installed_task=installed)
    site.studies.set_findings(manifest.study, [(finding.code, finding.line) for finding in findings])
    for finding in findings:
        site.log.warning("policy", study=manifest.study, code=finding.code, finding=finding.line)
    if findings:
        error = BudgetError if all(finding.is_budget for finding in findings) else PolicyError
        raise error(
            f"this hospital's policy does not allow study {manifest.study}",
            why="; ".join(finding.line for finding in findings),
            fix="Ask the consortium to change the study, or change policy.toml if the hospital agrees",
        )
    return data_set


def reserve_round(site: Site, trust: StudyTrust, data_set: str, round_number: int) -> None:
    """Ask policy once more, as the data set's patients and budget are now, and spend the round's budget.

    Raises PolicyError or BudgetError; ConflictError if the round was reserved for other patients.
    """
    manifest = trust.manifest
    task = TaskRef(manifest.task.name, manifest.task.code_digest)
    register(site, data_set, task)
    require(
        site.policy,
        study_facts(manifest),
        data_set,
        site.ledger,
        installed_task=installed_digest(task.name),
    )
    bounds = limits(site.policy, data_set, site.ledger)
    site.ledger.reserve(
        data_set,
        manifest.study,
        round_number,
        # Without noise the loss is not bounded, but it is recorded: a ceiling set later counts it.
        NO_PRIVACY if manifest.dp_disabled else round_cost(manifest),
        manifest=Digest(trust.digest),
        ceiling=bounds.ceiling,
        delta=bounds.delta,
    )
