"""A study against the hospital's policy and ledger: every reason to refuse it, not only the first."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from cipherward.crypto.manifest_rules import effective_threshold
from cipherward.crypto.strategies import SHARED_NOISE
from cipherward.errors import BudgetError, PolicyError
from cipherward.site_agent.ledger.accounting import NO_PRIVACY, repeated
from cipherward.site_agent.ledger.chain import Kind
from cipherward.site_agent.ledger.ledger import Ledger
from cipherward.site_agent.policy import quorum
from cipherward.site_agent.policy.facts import StudyFacts
from cipherward.site_agent.policy.model import INSTALLED, DataSetPolicy, Policy


@dataclass(frozen=True, slots=True)
class Finding:
    """One reason to refuse. ``code`` is stable; ``line`` is for the admin."""

    code: str
    line: str

    @property
    def is_budget(self) -> bool:
        """Whether it is only the privacy budget that lacks."""
        return self.code.startswith("budget-")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a data set may cost in all: at most epsilon ``ceiling`` at ``delta``."""

    ceiling: float
    delta: float


def limits(policy: Policy, dataset: str, ledger: Ledger) -> Limits:
    """The strictest limits of all data sets that share a patient with this one: a patient who is in two is
    protected as the stricter promises. For ``Ledger.reserve``.

    Raises PolicyError if the policy does not name the data set, UsageError if it is not registered.
    """
    rules = [policy.dataset(dataset)]
    rules += [policy.datasets[name] for name in ledger.overlapping(dataset) if name in policy.datasets]
    return Limits(min(rule.epsilon_ceiling for rule in rules), min(rule.delta for rule in rules))


def check(
    policy: Policy, study: StudyFacts, dataset: str, ledger: Ledger, *, installed_task: bytes | None
) -> list[Finding]:
    """All reasons why ``study`` may not train on ``dataset``; none means it may.

    ``dataset`` must be registered in ``ledger``. ``installed_task`` is the code digest of the study's task as
    installed here, None if it is not. Takes a second where the accountant must compute. Raises UsageError if
    the data set is not registered, and what the ledger raises.
    """
    found = [*_on_sites(policy, study), *_on_task(policy, study, installed_task)]
    if study.suite not in policy.allowed_suites:
        found.append(Finding("suite-not-allowed", f"the suite {study.suite} is not among allowed_suites"))
    if study.strategy not in policy.allowed_strategies:
        found.append(Finding("strategy-not-allowed", _on_strategy(study)))
    if policy.require_dp and not study.dp:
        found.append(Finding("dp-required", "the study trains without differential privacy"))
    if study.rounds < 1:
        found.append(Finding("no-rounds", "the study has no rounds"))
    rule = policy.datasets.get(dataset)
    if rule is None:
        return [*found, Finding("dataset-not-named", f"the policy has no table [datasets.{dataset}]")]
    return [*found, *_on_dataset(policy, rule, study, dataset, ledger)]


def require(
    policy: Policy, study: StudyFacts, dataset: str, ledger: Ledger, *, installed_task: bytes | None
) -> None:
    """As ``check``, but raises BudgetError if only the budget lacks, else PolicyError, with all reasons."""
    found = check(policy, study, dataset, ledger, installed_task=installed_task)
    if not found:
        return
    error = BudgetError if all(finding.is_budget for finding in found) else PolicyError
    raise error(
        f"study {study.study!r} version {study.version} may not train on data set {dataset!r}",
        why="; ".join(f"{finding.line} [{finding.code}]" for finding in found),
        fix="Ask the consortium to change the study, or change policy.toml if the hospital agrees",
    )


def _on_sites(policy: Policy, study: StudyFacts) -> Iterator[Finding]:
    cohort, sites = study.minimum_cohort, len(study.sites)
    if not sites:
        yield Finding("roster-empty", "the study names no sites")
    if len(set(study.sites)) != sites:
        yield Finding("roster-repeats", "the study names a site twice")
    if cohort < 2:
        yield Finding("cohort-of-one", f"with a minimum cohort of {cohort} one hospital's update is no sum")
    if cohort < policy.minimum_cohort:
        line = f"the minimum cohort is {cohort}, the hospital wants at least {policy.minimum_cohort}"
        yield Finding("cohort-too-small", line)
    if cohort > sites:
        yield Finding("cohort-above-roster", f"the minimum cohort {cohort} is more than the {sites} sites")
    if study.suite == "quorum":
        if study.threshold < policy.minimum_threshold:
            line = (
                f"the threshold is {study.threshold}, the hospital wants at least {policy.minimum_threshold}"
            )
            yield Finding("threshold-too-low", line)
        for code, line in quorum.violations(cohort, study.threshold, study.colluders, sites):
            yield Finding(code, line)


def _on_strategy(study: StudyFacts) -> str:
    line = f"the strategy {study.strategy} is not among allowed_strategies"
    if study.strategy != SHARED_NOISE:
        return line
    opening = effective_threshold(study.threshold, study.minimum_cohort)
    return (
        f"{line}: a site adds only 1/{study.honest} of the noise's variance, so that the study's epsilon holds "
        f"while at most {study.colluders} sites collude; {opening} sites that conspire to open this hospital's "
        "update find its own share of the noise alone on it"
    )


def _on_task(policy: Policy, study: StudyFacts, installed: bytes | None) -> Iterator[Finding]:
    pin = policy.allowed_tasks.get(study.task)
    if pin is None:
        yield Finding("task-not-allowed", f"the task {study.task} is not among allowed_tasks")
    elif pin != INSTALLED and pin != study.task_digest.hex():
        line = (
            f"the study's code of task {study.task} is {study.task_digest.hex()[:16]}, allowed is {pin[:16]}"
        )
        yield Finding("task-other-code", line)
    if installed is None:
        yield Finding("task-not-installed", f"the task {study.task} is not installed here")
    elif installed != study.task_digest:
        line = (
            f"the study's code of task {study.task} is {study.task_digest.hex()[:16]}, installed here is "
            f"{installed.hex()[:16]}"
        )
        yield Finding("task-other-version", line)


def _on_dataset(
    policy: Policy, rule: DataSetPolicy, study: StudyFacts, dataset: str, ledger: Ledger
) -> Iterator[Finding]:
    if rule.task is not None and rule.task != study.task:
        yield Finding("dataset-other-task", f"data set {dataset} is for the task {rule.task} only")
    patients, bounds = ledger.dataset(dataset).patients, limits(policy, dataset, ledger)
    if bounds.delta >= 1 / (10 * patients):
        line = (
            f"delta = {bounds.delta:g} is not below 1/(10 x {patients} patients) = {1 / (10 * patients):.3g}"
        )
        yield Finding("delta-too-large", line)
    if study.dp and study.delta > bounds.delta:
        line = f"the study's delta is {study.delta:g}, the hospital wants at most {bounds.delta:g}"
        yield Finding("delta-above-policy", line)
    # Over every data set with a patient of this one: a new name for the same patients starts no new count.
    lost = sum(ledger.count(Kind.LOST, name) for name in ledger.overlapping(dataset))
    if lost >= rule.max_lost_reservations:
        most = rule.max_lost_reservations
        line = f"{lost} rounds were paid for and then aborted, the hospital stops at {most}"
        yield Finding("too-many-lost", line)
    yield from _on_budget(study, dataset, bounds, ledger)


def _on_budget(study: StudyFacts, dataset: str, bounds: Limits, ledger: Ledger) -> Iterator[Finding]:
    if not study.dp:
        if not math.isinf(bounds.ceiling):
            line = (
                f"data set {dataset} has an epsilon ceiling of {bounds.ceiling:g}, which training without "
                "differential privacy exceeds at once; only epsilon_ceiling = inf allows it"
            )
            yield Finding("dp-off-under-ceiling", line)
        return
    done = ledger.count(Kind.RESERVE, dataset, study.study)
    if 0 < study.rounds <= done:
        return  # every round is paid: a restart in the last one must not ask for another
    # A study that cannot be finished is not begun: what it spends before it stops would be for nothing.
    rounds = study.rounds if done == 0 else 1
    cost = repeated(study.per_round or NO_PRIVACY, max(rounds, 1))
    after = ledger.cost_of(dataset, cost, bounds.delta)
    if after <= bounds.ceiling:
        return
    spent = ledger.spent(dataset, bounds.delta)
    what = f"its {rounds} rounds" if done == 0 else "its next round"
    line = (
        f"{what} would bring data set {dataset} from epsilon {spent:.4g} to {after:.4g} at delta "
        f"{bounds.delta:g}, the ceiling is {bounds.ceiling:g}"
    )
    yield Finding("budget-study" if done == 0 else "budget-round", line)
