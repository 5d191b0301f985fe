"""The hospital's policy: what it refuses, that it says why, and that a typo never weakens it."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cipherward.cli import site_view
from cipherward.clock import ManualClock
from cipherward.crypto.manifest_rules import effective_threshold
from cipherward.database import make_engine
from cipherward.errors import BudgetError, EnvironmentProblem, PolicyError, UsageError
from cipherward.ids import Digest
from cipherward.site_agent import policy_check
from cipherward.site_agent.ledger.accountant import LocalAccountant
from cipherward.site_agent.ledger.accounting import Gaussian, SampledGaussian, epsilon
from cipherward.site_agent.ledger.ledger import Ledger
from cipherward.site_agent.ledger.patients import PatientKey
from cipherward.site_agent.policy import (
    Limits,
    Policy,
    StudyFacts,
    check,
    limits,
    load,
    require,
    write_default,
)
from cipherward.site_agent.policy.guarantee import guarantees
from cipherward.site_agent.policy.model import LOCAL_NOISE
from cipherward.site_agent.policy.quorum import violations
from cipherward.site_agent.policy.template import TEMPLATE
from cipherward.site_agent.state.metadata import metadata

CODE = bytes.fromhex("ab" * 32)
ROUND = (Gaussian(20.0),)
DELTA = 1e-5
FACTS = StudyFacts(
    study="heart",
    version=1,
    suite="quorum",
    parameters="Q32",
    strategy="fedavg",
    task="heart-disease",
    task_digest=CODE,
    sites=("a", "b", "c", "d"),
    minimum_cohort=3,
    threshold=3,
    colluders=1,
    honest=0,
    rounds=5,
    dp=True,
    per_round=ROUND,
    delta=DELTA,
)
POLICY: dict[str, Any] = {
    "minimum_cohort": 3,
    "minimum_threshold": 3,
    "require_dp": True,
    "allowed_suites": ["quorum"],
    "allowed_tasks": {"heart-disease": "installed"},
    "datasets": {"ward": {"source": "ward.csv", "epsilon_ceiling": 2.0, "delta": DELTA}},
}


def policy(**changes: Any) -> Policy:
    return Policy.model_validate({**POLICY, **changes})


def ward(**changes: Any) -> dict[str, Any]:
    return {"ward": {**POLICY["datasets"]["ward"], **changes}}


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    engine = make_engine(f"sqlite:///{tmp_path}/site.db")
    metadata.create_all(engine)
    ledger = Ledger(engine, PatientKey(bytes(32)), accountant=LocalAccountant(), clock=ManualClock())
    ledger.register("ward", [f"p{number}" for number in range(100)])
    yield ledger
    engine.dispose()


def spend(ledger: Ledger, number: int, dataset: str = "ward") -> None:
    ledger.reserve(dataset, "heart", number, ROUND, manifest=Digest(CODE), ceiling=99.0, delta=DELTA)


def codes(
    ledger: Ledger, facts: StudyFacts = FACTS, rules: Policy | None = None, task: bytes | None = CODE
) -> set[str]:
    return {finding.code for finding in check(rules or policy(), facts, "ward", ledger, installed_task=task)}


def test_a_fair_study_is_allowed(ledger: Ledger) -> None:
    assert codes(ledger) == set()
    require(policy(), FACTS, "ward", ledger, installed_task=CODE)


REFUSED = [
    ({"sites": (), "minimum_cohort": 2}, {"roster-empty"}),
    ({"sites": ("a", "a", "b", "c")}, {"roster-repeats"}),
    ({"minimum_cohort": 1, "suite": "shared-key"}, {"cohort-of-one", "cohort-too-small"}),
    ({"minimum_cohort": 0, "suite": "shared-key"}, {"cohort-of-one", "cohort-too-small"}),
    ({"minimum_cohort": 2}, {"cohort-too-small"}),
    ({"minimum_cohort": 5}, {"cohort-above-roster"}),
    ({"threshold": 1}, {"threshold-too-low", "threshold-no-majority"}),
    ({"threshold": 2}, {"threshold-too-low", "threshold-no-majority"}),
    ({"threshold": 5}, {"threshold-above-roster"}),
    ({"colluders": 2}, {"too-many-colluders", "cohort-below-threshold"}),
    ({"suite": "shared-key"}, {"suite-not-allowed"}),
    ({"suite": "plain"}, {"suite-not-allowed"}),
    ({"strategy": "dp-fedsgd", "honest": 2}, {"strategy-not-allowed"}),
    ({"strategy": "fedmagic"}, {"strategy-not-allowed"}),
    ({"task": "other"}, {"task-not-allowed"}),
    ({"task_digest": bytes(32)}, {"task-other-version"}),
    ({"dp": False, "per_round": ()}, {"dp-required", "dp-off-under-ceiling"}),
    ({"per_round": ()}, {"budget-study"}),  # a study that forgets to say what it costs
    ({"delta": 1e-4}, {"delta-above-policy"}),
    ({"rounds": 0}, {"no-rounds"}),
    ({"rounds": 10_000}, {"budget-study"}),
    ({"rounds": 2**32 - 1}, {"budget-study"}),
]


@pytest.mark.parametrize(("changes", "expected"), REFUSED, ids=lambda value: str(sorted(value))[:60])
def test_what_is_refused(ledger: Ledger, changes: dict[str, Any], expected: set[str]) -> None:
    assert expected <= codes(ledger, replace(FACTS, **changes))
    with pytest.raises(PolicyError):
        require(policy(), replace(FACTS, **changes), "ward", ledger, installed_task=CODE)


def test_all_reasons_are_given_at_once(ledger: Ledger) -> None:
    bad = replace(
        FACTS, minimum_cohort=1, threshold=1, dp=False, per_round=(), task="evil", suite="shared-key"
    )
    with pytest.raises(PolicyError) as caught:
        require(policy(), bad, "ward", ledger, installed_task=None)
    line = str(caught.value)
    assert "\n" not in line and caught.value.code == "CW-400"
    for code in (
        "cohort-of-one",
        "suite-not-allowed",
        "dp-required",
        "task-not-allowed",
        "task-not-installed",
    ):
        assert f"[{code}]" in line


def test_shared_noise_must_be_allowed_by_name(ledger: Ledger) -> None:
    shared = replace(FACTS, strategy="dp-fedsgd", honest=2)
    (finding,) = check(policy(), shared, "ward", ledger, installed_task=CODE)
    assert finding.code == "strategy-not-allowed"
    for words in (
        "dp-fedsgd",
        "1/2 of the noise's variance",
        "at most 1 sites collude",
        "3 sites that conspire",
    ):
        assert words in finding.line
    assert codes(ledger, shared, policy(allowed_strategies=["fedavg", "dp-fedsgd"])) == set()
    assert codes(ledger, rules=policy(allowed_strategies=["dp-fedsgd"])) == {"strategy-not-allowed"}


def test_tasks_are_pinned(ledger: Ledger) -> None:
    pinned = policy(allowed_tasks={"heart-disease": CODE.hex()})
    assert codes(ledger, rules=pinned) == set()
    changed = replace(FACTS, task_digest=bytes(32))
    assert codes(ledger, changed, pinned, task=bytes(32)) == {"task-other-code"}
    assert codes(ledger, task=None) == {"task-not-installed"}
    assert codes(ledger, rules=policy(datasets=ward(task="lungs"))) == {"dataset-other-task"}


def test_delta_must_be_small_for_the_patients_there_are(ledger: Ledger) -> None:
    assert codes(ledger, rules=policy(datasets=ward(delta=1e-3))) == {
        "delta-too-large"
    }  # exactly 1/(10 x 100)
    assert codes(ledger, rules=policy(datasets=ward(delta=9.9e-4))) == set()
    ledger.register("ward", [f"p{number}" for number in range(10_000)])
    assert codes(ledger) == {"delta-too-large"}


def test_a_study_that_cannot_be_finished_is_not_begun(ledger: Ledger) -> None:
    five = epsilon(ROUND * 5, DELTA)
    tight = policy(datasets=ward(epsilon_ceiling=five))
    assert codes(ledger, rules=tight) == set()
    assert codes(ledger, replace(FACTS, rounds=6), tight) == {"budget-study"}
    for number in range(1, 6):
        # Once begun, it goes on as long as the next round fits.
        assert codes(ledger, replace(FACTS, rounds=6), tight) == ({"budget-study"} if number == 1 else set())
        spend(ledger, number)
    assert codes(ledger, replace(FACTS, rounds=6), tight) == {"budget-round"}
    with pytest.raises(BudgetError, match="ceiling"):
        require(tight, replace(FACTS, rounds=6), "ward", ledger, installed_task=CODE)
    # All five rounds are paid, to the last bit of the ceiling: a restart in the fifth finds it so.
    assert codes(ledger, rules=tight) == set()
    assert codes(ledger, replace(FACTS, study="another"), tight) == {"budget-study"}


def test_the_stricter_of_two_overlapping_data_sets_holds(ledger: Ledger) -> None:
    rules = policy(datasets={**ward(), "clinic": {"source": "c", "epsilon_ceiling": 0.01, "delta": 1e-7}})
    ledger.register("clinic", ["q"])
    assert limits(rules, "ward", ledger) == Limits(2.0, DELTA)
    ledger.register("clinic", ["q", "p1"])
    assert limits(rules, "ward", ledger) == Limits(0.01, 1e-7)
    assert codes(ledger, rules=rules) == {"budget-study", "delta-above-policy"}


def test_too_many_aborted_rounds_end_it(ledger: Ledger) -> None:
    with pytest.raises(ValidationError):  # it would never be used
        policy(datasets=ward(max_lost_reservations=0))
    cautious = policy(datasets=ward(max_lost_reservations=2))
    for number in (1, 2):
        spend(ledger, number)
        ledger.mark_lost("ward", "heart", number)
        assert codes(ledger, rules=cautious) == ({"too-many-lost"} if number == 2 else set())
    # A patient under a new name brings the count along; others start at none.
    renamed = policy(datasets={"clinic": ward(max_lost_reservations=2)["ward"]})
    for patients, expected in ((["q"], set()), (["q", "p1"], {"too-many-lost"})):
        ledger.register("clinic", patients)
        found = check(renamed, FACTS, "clinic", ledger, installed_task=CODE)
        assert {finding.code for finding in found} == expected


def test_training_without_dp_takes_two_deliberate_switches(ledger: Ledger) -> None:
    off = replace(FACTS, dp=False, per_round=())
    assert codes(ledger, off, policy(require_dp=False)) == {"dp-off-under-ceiling"}
    assert codes(ledger, off, policy(require_dp=False, datasets=ward(epsilon_ceiling=math.inf))) == set()


def test_unknown_data_sets(ledger: Ledger) -> None:
    assert {f.code for f in check(policy(), FACTS, "attic", ledger, installed_task=CODE)} == {
        "dataset-not-named"
    }
    with pytest.raises(PolicyError, match=r"\[datasets\.attic\]"):
        policy().dataset("attic")
    with pytest.raises(UsageError, match="not registered"):
        check(
            policy(datasets={"attic": POLICY["datasets"]["ward"]}),
            FACTS,
            "attic",
            ledger,
            installed_task=CODE,
        )


# What the noise rests on


def test_local_noise_rests_on_nobody(ledger: Ledger) -> None:
    (one,) = guarantees(FACTS, DELTA, LocalAccountant())
    assert (one.noise, one.epsilon) == (1.0, epsilon(ROUND * 5, DELTA))
    assert "everybody" in one.against
    assert guarantees(replace(FACTS, dp=False, per_round=()), DELTA, LocalAccountant()) == []


def test_shared_noise_rests_on_sites_that_do_not_collude() -> None:
    """k = 6 contributors, c = 2 of whom collude: h = 4 parts of a quarter of the variance each."""
    cost = (SampledGaussian(2.0, 0.1, 1), Gaussian(20.0))
    facts = replace(
        FACTS, strategy="dp-fedsgd", minimum_cohort=6, colluders=2, honest=4, rounds=30, per_round=cost
    )
    outside, promised, alone = guarantees(facts, DELTA, LocalAccountant())
    assert promised.epsilon == epsilon(cost * 30, DELTA)  # what the ledger takes
    assert outside.noise == pytest.approx(math.sqrt(6 / 4)) and outside.epsilon < promised.epsilon
    assert alone.noise == 0.5
    assert alone.epsilon == epsilon([SampledGaussian(1.0, 0.1, 30), Gaussian(10.0, 30)], DELTA)
    assert "up to 2 sites" in promised.against and "more than 2 sites" in alone.against


def test_the_check_says_whose_noise_a_study_rests_on(
    ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    cost = (SampledGaussian(4.0, 0.1, 1), Gaussian(20.0))
    facts = replace(
        FACTS, strategy="dp-fedsgd", minimum_cohort=6, colluders=2, honest=4, rounds=30, per_round=cost
    )
    site: Any = SimpleNamespace(policy=policy(), ledger=ledger)
    noise, budget = policy_check.noise(site, facts, "ward"), policy_check.budget(site, facts, "ward")
    assert (noise["kind"], noise["honest"], len(noise["guarantees"])) == ("shared", 4, 3)
    assert budget is not None and budget["after"] == epsilon(cost * 30, DELTA)
    found = {"trust": "", "study": "heart", "data_set": "ward", "allowed": True, "findings": []}
    site_view.print_policy_check({**found, "noise": noise, "budget": budget})
    printed = capsys.readouterr().out
    assert (
        "This site adds 1/4 of its variance; at least 6 sites are in a sum, of which 2 may collude" in printed
    )
    for one in noise["guarantees"]:
        assert f"{one['epsilon']:.4g}" in printed
    off = replace(FACTS, dp=False, per_round=())
    assert policy_check.noise(site, off, "ward")["kind"] == "none"
    assert policy_check.budget(site, off, "ward") is None


# The quorum suite's numbers


def test_the_table_of_the_quorum_suite() -> None:
    for sites, threshold, withstood in ((3, 3, 1), (4, 3, 1), (5, 4, 2), (7, 5, 2), (10, 7, 3), (32, 22, 11)):
        assert effective_threshold(0, sites) == threshold
        assert not list(violations(threshold, threshold, withstood, sites))
        assert list(violations(threshold, threshold, withstood + 1, sites))


@given(
    sites=st.integers(1, 12),
    cohort=st.integers(0, 14),
    threshold=st.integers(0, 14),
    colluders=st.integers(0, 6),
)
def test_numbers_that_pass_keep_two_contributor_sets_from_being_opened(
    sites: int, cohort: int, threshold: int, colluders: int
) -> None:
    if list(violations(cohort, threshold, colluders, sites)):
        return
    for joined in range(cohort, sites + 1):
        needed = effective_threshold(threshold, joined)
        # Honest members answer one U each, colluders each U: opening two takes 2t <= (n - c) + 2c answers.
        assert 2 * needed > joined + colluders
        # Two honest sites are in every sum, and enough members exist to open it.
        assert cohort - colluders >= 2
        assert needed <= joined


# The file


def test_the_default_policy_is_cautious_and_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    write_default(path)
    default = load(path)
    assert default.require_dp and default.minimum_cohort >= 3 and default.minimum_threshold >= 3
    assert default.allowed_strategies == Policy.model_validate(POLICY).allowed_strategies == LOCAL_NOISE
    assert not default.allowed_tasks and not default.datasets  # nothing may run until the admin says so
    with pytest.raises(EnvironmentProblem):
        write_default(path)


def test_the_examples_in_the_default_policy_work() -> None:
    lines = TEMPLATE.splitlines()
    uncommented = "\n".join(
        line.removeprefix("# ") if " = " in line or line.startswith("# [") else line for line in lines
    )
    example = Policy.model_validate(tomllib.loads(uncommented))
    assert example.dataset("cardiology").epsilon_ceiling == 4.0
    assert example.allowed_tasks == {"heart-disease": "installed"}


WRONG = [
    ("minimum_cohort = 3", "minimum_cohort = 1", "minimum_cohort"),
    ("minimum_cohort = 3", "minimum_cohort = '3'", "minimum_cohort"),
    ("minimum_cohort = 3", "min_cohort = 3", "min_cohort"),
    ("minimum_threshold = 3", "minimum_threshold = 1", "minimum_threshold"),
    ("require_dp = true", "require_dp = 'no'", "require_dp"),
    ("require_dp = true", "require_dp = 0", "require_dp"),
    ("require_dp = true", "require_DP = true", "require_dp"),
    ('["quorum"]', '["quorum", "plain"]', "allowed_suites"),
    ('["quorum"]', "[]", "allowed_suites"),
    ('["fedavg", ', '["fedavgg", ', "allowed_strategies"),
    ('["fedavg", "fedprox", "fedadam", "fedyogi"]', "[]", "allowed_strategies"),
    ("[allowed_tasks]", "[allowed_tasks]\nx = 'any'", "allowed_tasks.x"),
    ("[allowed_tasks]", "[allowed_tasks]\nx = 'AB'", "allowed_tasks.x"),
    ("[allowed_tasks]", "[allowed_tasks", "TOML"),
    ("DATASET", "source = ''\nepsilon_ceiling = 1\ndelta = 1e-6", "datasets.w.source"),
    ("DATASET", "source = 's'\nepsilon_ceiling = 0\ndelta = 1e-6", "epsilon_ceiling"),
    ("DATASET", "source = 's'\nepsilon_ceiling = nan\ndelta = 1e-6", "epsilon_ceiling"),
    ("DATASET", "source = 's'\nepsilon_ceiling = inf\ndelta = 1e-6", "contradicts require_dp"),
    ("DATASET", "source = 's'\nepsilon_ceiling = 1\ndelta = 0.5", "delta"),
    ("DATASET", "source = 's'\nepsilon_ceiling = 1\ndelta = 0", "delta"),
    ("DATASET", "source = 's'\nepsilon_ceiling = 1", "datasets.w.delta"),
    ("DATASET", "source = 's'\nepsilon_ceiling = 1\ndelta = 1e-6\nepsilon_celing = 9", "epsilon_celing"),
]


@pytest.mark.parametrize(("line", "instead", "named"), WRONG)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, line: str, instead: str, named: str) -> None:
    path = tmp_path / "policy.toml"
    assert line == "DATASET" or line in TEMPLATE
    content = (
        f"{TEMPLATE}\n[datasets.w]\n{instead}\n" if line == "DATASET" else TEMPLATE.replace(line, instead)
    )
    path.write_text(content)
    with pytest.raises(UsageError) as caught:
        load(path)
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_or_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem):
        load(tmp_path / "policy.toml")
    (tmp_path / "policy.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError):
        load(tmp_path / "policy.toml")
