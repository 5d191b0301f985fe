"""What docs/privacy.md says in figures and names is what the code does."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from cipherward.evaluation.privacy_audit.mutants import MUTANTS
from cipherward.site_agent.ledger.accountant import LocalAccountant
from cipherward.site_agent.ledger.accounting import Gaussian, SampledGaussian
from cipherward.site_agent.policy import StudyFacts
from cipherward.site_agent.policy.guarantee import guarantees
from cipherward.site_agent.policy.template import TEMPLATE

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/privacy.md").read_text()


def rows(first_column: str) -> list[list[str]]:
    head, found = f"| {first_column} |", []
    for line in PAGE[PAGE.index(head) :].splitlines()[2:]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def test_the_table_of_adversaries_is_the_examples() -> None:
    study = tomllib.loads((ROOT / "examples/heart/dp-fedsgd.toml").read_text())
    dp, training, cohort = study["dp"], study["training"], study["cohort"]
    facts = StudyFacts(
        study="example",
        version=1,
        suite="quorum",
        parameters="q16",
        strategy=study["study"]["strategy"],
        task="heart-disease",
        task_digest=bytes(32),
        sites=tuple(cohort["sites"]),
        minimum_cohort=cohort["minimum"],
        threshold=cohort["threshold"],
        colluders=cohort["colluders"],
        honest=cohort["minimum"] - cohort["colluders"],
        rounds=study["study"]["rounds"],
        dp=True,
        per_round=(
            SampledGaussian(dp["noise_multiplier"], training["sampling_rate"], training["steps"]),
            Gaussian(dp["metrics"]["noise_multiplier"]),
        ),
        delta=dp["delta"],
    )
    found = guarantees(facts, dp["delta"], LocalAccountant())
    said = [float(row[-1]) for row in rows("adversary")]
    assert [one.epsilon for one in found] == pytest.approx(said, abs=6e-4)
    assert (
        f"(k = {facts.minimum_cohort}, c = {facts.colluders}, h = {facts.honest}, t = {facts.threshold}"
        in PAGE
    )


def test_every_broken_training_has_its_row() -> None:
    told = " ".join(row[0] for row in rows("broken"))
    parts = [part.strip() for row in rows("broken") for part in row[0].split(";")]
    assert len(parts) == len(MUTANTS) and "no clipping" in told


def test_every_policy_key_named_exists() -> None:
    keys = set(re.findall(r"^#? ?([a-z_]+) = ", TEMPLATE, re.MULTILINE))
    named = {key.split(".")[-1] for row in rows("key") for key in re.findall(r"`([A-Za-z_.]+)`", row[0])}
    assert named and named <= keys
