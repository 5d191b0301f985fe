"""The accountant against closed forms, published figures, and two accountants written by others."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cipherward.errors import BudgetError, UsageError
from cipherward.site_agent.ledger.accounting import (
    Gaussian,
    PrivacyEvent,
    SampledGaussian,
    calibrate_noise,
    epsilon,
    merged,
    rounds_left,
)

sigmas = st.sampled_from([0.8, 1.0, 2.0, 5.0])
events = st.one_of(
    st.builds(SampledGaussian, sigmas, st.sampled_from([0.01, 0.1, 1.0]), st.integers(1, 200)),
    st.builds(Gaussian, st.floats(1.0, 50.0), st.integers(1, 20)),
)


def analytic_delta(sigma: float, eps: float) -> float:
    """Delta of one Gaussian release, exactly: Balle and Wang 2018, theorem 8."""

    def phi(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    return phi(0.5 / sigma - eps * sigma) - math.exp(eps) * phi(-0.5 / sigma - eps * sigma)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("delta", [1e-2, 1e-5, 1e-9])
def test_one_gaussian_is_the_closed_form(sigma: float, delta: float) -> None:
    bound = epsilon([Gaussian(sigma)], delta)
    assert analytic_delta(sigma, bound) <= delta  # never too low
    assert analytic_delta(sigma, bound - 1e-4 - 1e-3 * bound) > delta or bound <= 1e-4  # and hardly too high


def test_many_steps_over_all_patients_are_one_gaussian() -> None:
    eps = epsilon([SampledGaussian(100.0, 1.0, 10_000)], 1e-5)
    assert eps == epsilon([Gaussian(100.0, 10_000)], 1e-5) == epsilon([Gaussian(1.0)], 1e-5)


def test_published_figures() -> None:
    # Opacus, accountants_test.py: PRV 6.777395712150674 (an upper bound, 0.01 wide), RDP 7.32911117143.
    eps = epsilon([SampledGaussian(1.5, 0.04, 2250)], 1e-5)
    assert 6.76 < eps < 6.7774
    # dp_accounting, test_self_composed_subsampled_gaussian: delta(1) = 0.15594.
    assert epsilon([SampledGaussian(0.5, 0.2, 3)], 0.15594) == pytest.approx(1, abs=1e-3)
    # Pinned here: a change of library that moves a hospital's ledger must not go unseen.
    assert eps == pytest.approx(6.768787, rel=1e-5)
    assert epsilon([SampledGaussian(1.0, 0.01, 1000)], 1e-5) == pytest.approx(1.828244, rel=1e-5)


CONFIGURATIONS = [
    (1.0, 0.01, 1000),
    (0.8, 0.05, 200),
    (2.0, 0.1, 300),
    (4.0, 0.02, 5000),
    (1.1, 256 / 60000, 14000),
]


@pytest.mark.parametrize(("sigma", "rate", "steps"), CONFIGURATIONS)
def test_three_accountants_agree(sigma: float, rate: float, steps: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Opacus imports deprecated parts of torch
        from opacus.accountants import PRVAccountant, RDPAccountant

        histories = PRVAccountant(), RDPAccountant()
        for accountant in histories:
            accountant.history = [(sigma, rate, steps)]
        prv, rdp = (float(accountant.get_epsilon(delta=1e-5)) for accountant in histories)
    pld = epsilon([SampledGaussian(sigma, rate, steps)], 1e-5)
    assert pld <= rdp
    assert abs(pld - prv) <= 0.01 + 0.01 * pld


@settings(max_examples=8, deadline=None)
@given(history=st.lists(events, max_size=3), more=events)
def test_composition_never_gets_cheaper(history: list[PrivacyEvent], more: PrivacyEvent) -> None:
    before, after = epsilon(history, 1e-5), epsilon([*history, more], 1e-5)
    assert after >= before * (1 - 1e-9)
    assert after >= epsilon([more], 1e-5) * (1 - 1e-9)


@given(history=st.lists(events, max_size=6), data=st.data())
def test_a_history_has_one_shortest_form(history: list[PrivacyEvent], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(history))
    assert merged(shuffled) == merged(history)
    again = merged(merged(history))
    assert again[:-1] == merged(history)[:-1]
    if again and isinstance(again[-1], Gaussian):  # the square root may round once more
        assert again[-1].noise_multiplier == pytest.approx(merged(history)[-1].noise_multiplier, rel=1e-15)


def test_no_noise_is_infinite() -> None:
    assert epsilon([], 1e-5) == 0
    assert epsilon([Gaussian(0.0)], 1e-5) == math.inf
    assert epsilon([SampledGaussian(0.0, 0.01, 1), Gaussian(5.0)], 1e-5) == math.inf
    assert epsilon([SampledGaussian(1e-300, 0.01, 1)], 1e-5) == math.inf


@pytest.mark.parametrize(
    "event", [SampledGaussian(0.05, 0.5, 10), SampledGaussian(1.0, 0.01, 10**12), Gaussian(1e-3, 10**12)]
)
def test_absurd_histories_answer_quickly_and_above_any_ceiling(event: PrivacyEvent) -> None:
    assert epsilon([event], 1e-5) > 900


@pytest.mark.parametrize(
    "arguments", [(-1.0, 0.1, 1), (1e9, 0.1, 1), (1.0, 0.0, 1), (1.0, 1.1, 1), (1.0, 0.1, 0)]
)
def test_impossible_events_are_refused(arguments: tuple[float, float, int]) -> None:
    with pytest.raises(UsageError):
        SampledGaussian(*arguments)


def test_impossible_inputs_are_refused() -> None:
    for sigma in (math.nan, math.inf):
        with pytest.raises(UsageError):
            Gaussian(sigma)
        with pytest.raises(UsageError):
            SampledGaussian(sigma, 0.1, 1)
    for steps in (1.5, True, 2**60):
        with pytest.raises(UsageError):
            SampledGaussian(1.0, 0.1, steps)  # type: ignore[arg-type]
    for delta in (0.0, 1.0, 1e-12, math.nan):
        with pytest.raises(UsageError):
            epsilon([Gaussian(1.0)], delta)


@pytest.mark.parametrize(("target", "delta", "rate", "steps"), [(1.0, 1e-5, 0.01, 1000), (0.1, 1e-5, 1.0, 1)])
def test_calibrated_noise_is_the_smallest_that_fits(
    target: float, delta: float, rate: float, steps: int
) -> None:
    sigma = calibrate_noise(target, delta, rate, steps)
    less = sigma - 10.0 ** (math.floor(math.log10(sigma)) - 3)
    assert epsilon([SampledGaussian(sigma, rate, steps)], delta) <= target
    assert epsilon([SampledGaussian(less, rate, steps)], delta) > target


def test_other_releases_are_calibrated_around() -> None:
    alone = calibrate_noise(1.0, 1e-5, 0.1, 100)
    beside = calibrate_noise(1.0, 1e-5, 0.1, 100, [Gaussian(10.0)])
    assert beside > alone
    assert epsilon([SampledGaussian(beside, 0.1, 100), Gaussian(10.0)], 1e-5) <= 1.0
    with pytest.raises(BudgetError, match="alone cost"):
        calibrate_noise(1.0, 1e-5, 0.1, 100, [Gaussian(0.5)])


def test_rounds_left_is_exact() -> None:
    spent, per_round = [Gaussian(5.0)], [SampledGaussian(2.0, 0.05, 20), Gaussian(30.0)]
    left = rounds_left(spent, per_round, 2.0, 1e-5)
    assert left > 1
    assert (
        epsilon([*spent, *per_round * left], 1e-5) <= 2.0 < epsilon([*spent, *per_round * (left + 1)], 1e-5)
    )
    assert rounds_left([Gaussian(0.0)], per_round, 2.0, 1e-5) == 0
    assert rounds_left([], [Gaussian(1e5)], 2.0, 1e-5, limit=50) == 50
    with pytest.raises(UsageError):
        rounds_left(spent, [], 2.0, 1e-5)


def test_importing_it_loads_neither_torch_nor_scipy() -> None:
    code = (
        "import sys, cipherward.site_agent.ledger.report, cipherward.site_agent.policy\n"
        "sys.exit(bool({'torch', 'scipy', 'dp_accounting'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
