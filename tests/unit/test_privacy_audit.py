"""The audit in one run: its bound is the paper's and does not say too much, training as sites run it stays below
its claim, and each broken variant of it is caught by what its row names."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom
from typer.testing import CliRunner

from cipherward.errors import UsageError
from cipherward.evaluation.privacy_audit.audit import audit, best_guesses, calibrated, likelihood
from cipherward.evaluation.privacy_audit.bound import lower_bound, p_value
from cipherward.evaluation.privacy_audit.checks import CHECKS
from cipherward.evaluation.privacy_audit.mutants import MUTANTS, Mutant, broken, catch
from cipherward.evaluation.privacy_audit.path import DP_FEDSGD, FEDAVG, STRATEGIES, Setting
from cipherward.site_agent.training import dpsgd, jobs, noise

DELTA = 1e-5
SETTINGS = {FEDAVG: Setting(FEDAVG, 1.4, 1.0), DP_FEDSGD: Setting(DP_FEDSGD, 1.4, 1.0)}

# The bound


def test_without_delta_it_is_the_binomials() -> None:
    for guesses, right in ((100, 90), (1000, 700), (50, 50)):
        rate = beta.ppf(0.05, right, guesses - right + 1)  # Clopper and Pearson 1934
        expected = math.log(rate / (1 - rate))
        assert lower_bound(1000, guesses, right, 0.0, 0.95) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_the_chance_is_the_theorems(data: st.DataObject) -> None:
    guesses = data.draw(st.integers(1, 60))
    right, more = data.draw(st.integers(1, guesses)), data.draw(st.integers(0, 40))
    eps, delta = data.draw(st.floats(0, 6)), data.draw(st.sampled_from([0.0, 1e-6, 1e-3]))
    law = binom(guesses, 1 / (1 + math.exp(-eps)))
    tail = [float(sum(law.pmf(k) for k in range(right - i, right))) / i for i in range(1, right + 1)]
    expected = float(sum(law.pmf(k) for k in range(right, guesses + 1)))
    expected += 2 * (guesses + more) * delta * max(tail)
    assert p_value(guesses + more, guesses, right, eps, delta) == pytest.approx(min(1, expected), rel=1e-6)


def test_it_seldom_says_too_much() -> None:
    """Randomised response is exactly epsilon-private: the bound may exceed epsilon in one run of twenty."""
    rng, eps, canaries = np.random.default_rng(7), 1.0, 400
    keep = 1 / (1 + math.exp(-eps))
    right = rng.binomial(canaries, keep, size=400)
    wrong = sum(p_value(canaries, canaries, int(one), eps, 0.0) <= 0.05 for one in right)
    assert 0 < wrong <= binom.ppf(1 - 1e-6, 400, 0.05)
    several = 0
    for _ in range(40):  # and so in several attempts, among which the best is taken
        inside = rng.random(canaries) < 0.5
        answers = np.where(rng.random(canaries) < keep, inside, ~inside)
        scores = answers + 0.01 * rng.random(canaries)
        several += best_guesses(scores, inside, 0.0, 0.95)[2] > eps
    assert several <= binom.ppf(1 - 1e-6, 40, 0.05)


def test_what_cannot_be_judged() -> None:
    for numbers in ((10, 20, 5), (10, 10, 11), (10, 10, -1)):
        with pytest.raises(UsageError):
            p_value(*numbers, 1.0, DELTA)
    with pytest.raises(UsageError):
        lower_bound(10, 10, 5, DELTA, 1.0)
    assert lower_bound(100, 100, 50, DELTA, 0.95) == 0


def test_the_likelihood_is_the_mixtures() -> None:
    seen = np.array([-1.0, 0.0, 0.7, 3.0])
    drawn = [
        sum(binom.pmf(j, 3, 0.25) * math.exp(-((x - j) ** 2) / (2 * 4.0)) for j in range(4)) for x in seen
    ]
    none = [math.exp(-(x**2) / (2 * 4.0)) for x in seen]
    assert likelihood(seen, 3, 0.25, 4.0) == pytest.approx(np.log(np.array(drawn) / none))


# Training as sites run it


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_more_is_proved_than_is_promised(strategy: str) -> None:
    found = audit(SETTINGS[strategy], canaries=1000, delta=DELTA, seed=1)
    assert 0.2 < found.proved <= found.claimed < 3.0  # it sees something, and not too much
    sampled = {FEDAVG: Setting(FEDAVG, 2.71, 0.25, 10, 5), DP_FEDSGD: Setting(DP_FEDSGD, 2.75, 0.25, 1, 50)}
    found = audit(sampled[strategy], canaries=1000, delta=DELTA, seed=2)
    assert 0.2 < found.proved <= found.claimed < 3.0


def test_who_opens_one_sites_update_sees_its_own_share_of_the_noise() -> None:
    """More than the study's epsilon, as `site policy check` says, and no more than that share allows."""
    setting = calibrated(DP_FEDSGD, 1.0, DELTA)
    sums, opened = (audit(setting, canaries=4000, delta=DELTA, seed=3, opened=one) for one in (False, True))
    assert sums.proved <= sums.claimed <= 1.0 < opened.claimed
    assert sums.proved < opened.proved <= opened.claimed


@pytest.mark.parametrize("name", sorted(CHECKS))
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_sound_training_passes(strategy: str, name: str) -> None:
    check = CHECKS[name](SETTINGS[strategy])
    assert check.passed, check


# And broken


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_broken_training_is_caught(strategy: str, mutant: Mutant) -> None:
    caught = catch(mutant, SETTINGS[strategy])
    assert caught.caught, caught


def test_a_mutant_leaves_nothing_behind() -> None:
    before = (dpsgd.gaussian_mechanism, dpsgd.PatientGradients, jobs.KeyStream, noise.gaussian_mechanism)
    for mutant in MUTANTS:
        with pytest.raises(KeyError), broken(mutant):
            assert before != (
                dpsgd.gaussian_mechanism,
                dpsgd.PatientGradients,
                jobs.KeyStream,
                noise.gaussian_mechanism,
            )
            raise KeyError
    assert before == (
        dpsgd.gaussian_mechanism,
        dpsgd.PatientGradients,
        jobs.KeyStream,
        noise.gaussian_mechanism,
    )


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    import typer

    from cipherward.evaluation.privacy_audit.__main__ import main

    app = typer.Typer()
    app.command()(main)
    out = tmp_path / "audit.json"
    ended = CliRunner().invoke(app, ["--strategy", DP_FEDSGD, "--canaries", "1000", "--json", str(out)])
    assert ended.exit_code == 0, ended.output
    found = json.loads(out.read_text())
    assert [one["holds"] for one in found["audits"]] == [True, True]
    assert all(one["caught"] for one in found["mutants"]) and "NO" not in ended.output
    with pytest.raises(UsageError, match="one step a round"):
        CliRunner().invoke(app, ["--strategy", DP_FEDSGD, "--steps", "2"], catch_exceptions=False)
