"""Three accountants, one loss: privacy loss distributions (the ledger's), privacy random variables (Opacus's)
and Renyi divergences, for every kind of history that a site's ledger can hold, and figures that others
published."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from cipherward.site_agent.ledger import accounting
from cipherward.site_agent.ledger.accounting import (
    Gaussian,
    PrivacyEvent,
    SampledGaussian,
    epsilon,
    merged,
    repeated,
)
from cipherward.site_agent.training.constants import SharedNoise

DELTA = 1e-5


def prv(history: Sequence[PrivacyEvent], delta: float) -> float:
    """Gopi, Lee and Wutschitz 2021, as Opacus computes it: an upper bound, within 0.01 of the truth."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Opacus imports deprecated parts of torch
        from opacus.accountants import PRVAccountant

        accountant = PRVAccountant()
        for event in history:
            if isinstance(event, SampledGaussian):
                accountant.history.append((event.noise_multiplier, event.sampling_rate, event.steps))
            else:
                accountant.history.append((event.noise_multiplier, 1.0, event.count))
        return float(accountant.get_epsilon(delta=delta, eps_error=0.01))


def pld(history: Sequence[PrivacyEvent], delta: float) -> float:
    """dp_accounting's own accountant, which does not take the lower of two bounds as the ledger's does."""
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    for event in history:
        whole = dp_accounting.GaussianDpEvent(event.noise_multiplier)
        if isinstance(event, SampledGaussian):
            accountant.compose(dp_accounting.PoissonSampledDpEvent(event.sampling_rate, whole), event.steps)
        else:
            accountant.compose(whole, event.count)
    return float(accountant.get_epsilon(delta))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon of a Gaussian mechanism with sensitivity mu standard deviations, exactly: the root of Balle and
    Wang 2018, theorem 8."""

    def excess(eps: float) -> float:
        return float(norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * norm.cdf(-mu / 2 - eps / mu) - delta)

    low, high = 0.0, 1.0
    while excess(high) > 0:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return high


def shared(sites: int, colluders: int, sigma: float, rate: float, metrics: float) -> SharedNoise:
    """A study with shared noise whose minimum cohort is all of its sites."""
    return SharedNoise(
        sampling_rate=rate,
        steps=1,
        divisor=10.0,
        learning_rate=1.0,
        loss_bound=4.0,
        metrics_scale=100.0,
        clip_norm=0.7,
        noise_multiplier=sigma,
        metrics_noise_multiplier=metrics,
        honest=sites - colluders,
        noise_range=32.0,
    )


def seen_by_colluders(constants: SharedNoise, contributors: int, colluders: int) -> tuple[PrivacyEvent, ...]:
    """One round of the sum when ``colluders`` of its contributors subtract the noise that they added."""
    share = math.sqrt(contributors - colluders)
    model = constants.noise_share * share / constants.clip_norm
    return (
        SampledGaussian(model, constants.sampling_rate, 1),
        Gaussian(constants.metrics_noise_share * share),
    )


PATHS: dict[str, tuple[PrivacyEvent, ...]] = {
    # The built-in study: 5 rounds of 10 steps at rate 0.25, and their metrics.
    "fedavg": repeated([SampledGaussian(2.5, 0.25, 10), Gaussian(20.0)], 5),
    "fedavg, small rate": repeated([SampledGaussian(0.8, 0.01, 50), Gaussian(40.0)], 10),
    "fedavg, everybody in each step": repeated([SampledGaussian(12.0, 1.0, 10), Gaussian(20.0)], 5),
    "metrics alone": (Gaussian(15.0, 30),),
    "dp-fedsgd, 4 sites": repeated(seen_by_colluders(shared(4, 1, 1.1, 0.05, 30.0), 4, 1), 200),
    "dp-fedsgd, 32 sites": repeated(seen_by_colluders(shared(32, 10, 2.0, 0.1, 25.0), 32, 10), 300),
    "two studies": (
        *repeated([SampledGaussian(2.5, 0.25, 10), Gaussian(20.0)], 5),
        *repeated([SampledGaussian(1.1, 0.05, 1), Gaussian(30.0)], 100),
    ),
    "tuning, then the study": (
        *(event for sigma in (3.0, 4.0, 5.0) for event in (SampledGaussian(sigma, 0.1, 50), Gaussian(20.0))),
        *repeated([SampledGaussian(2.0, 0.1, 10), Gaussian(20.0)], 20),
    ),
}


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=pytest.mark.slow if "32 sites" in path else ()) for path in sorted(PATHS)],
)
@pytest.mark.parametrize("delta", [1e-6, pytest.param(1e-4, marks=pytest.mark.slow)])
def test_every_path_costs_the_same_by_three_accountants(path: str, delta: float) -> None:
    history = merged(PATHS[path])
    charged, by_pld = epsilon(history, delta), pld(history, delta)
    assert charged == pytest.approx(by_pld, rel=1e-3)
    assert 0.3 < by_pld < 20  # a figure that a study could have
    assert abs(prv(history, delta) - by_pld) <= 0.01 + 0.01 * by_pld
    assert accounting._rdp_epsilon(history, delta) >= by_pld


@settings(max_examples=3, deadline=None)
@given(
    sigma=st.floats(0.7, 6.0),
    rate=st.sampled_from([0.005, 0.02, 0.1, 0.4]),
    steps=st.integers(1, 300),
    metrics=st.floats(10.0, 60.0),
    releases=st.integers(1, 40),
)
def test_any_study_costs_the_same_by_three_accountants(
    sigma: float, rate: float, steps: int, metrics: float, releases: int
) -> None:
    history = merged([SampledGaussian(sigma, rate, steps), Gaussian(metrics, releases)])
    rdp = accounting._rdp_epsilon(history, DELTA)
    assert epsilon(history, DELTA) <= rdp
    if rdp < 30:  # beyond, the arrays of the others grow large
        by_pld = pld(history, DELTA)
        assert by_pld <= rdp
        assert epsilon(history, DELTA) == pytest.approx(by_pld, rel=1e-3)
        assert abs(prv(history, DELTA) - by_pld) <= 0.01 + 0.01 * by_pld


def test_whole_releases_are_the_closed_form() -> None:
    """Nothing is sampled, so that the loss is known exactly, however many releases there were."""
    for history in ([Gaussian(15.0, 30)], [Gaussian(8.0), Gaussian(5.0, 3)], [SampledGaussian(3.0, 1.0, 7)]):
        mu = math.sqrt(
            sum(
                (e.steps if isinstance(e, SampledGaussian) else e.count) / e.noise_multiplier**2
                for e in history
            )
        )
        exact = gaussian_epsilon(mu, DELTA)
        assert exact <= epsilon(history, DELTA) <= exact * 1.001 + 1e-4


# dp-fedsgd: what is in the ledger is the worst that the manifest allows


@pytest.mark.parametrize(
    ("sites", "colluders"),
    [(3, 1), pytest.param(7, 2, marks=pytest.mark.slow), pytest.param(32, 10, marks=pytest.mark.slow)],
)
def test_shared_noise_costs_at_most_what_the_ledger_says(sites: int, colluders: int) -> None:
    constants = shared(sites, colluders, 1.2, 0.1, 30.0)
    charged = (SampledGaussian(1.2, 0.1, 1), Gaussian(30.0))
    worst = seen_by_colluders(constants, sites, colluders)
    for said, seen in zip(charged, worst, strict=True):
        assert seen.noise_multiplier == pytest.approx(said.noise_multiplier, rel=1e-12)
    paid = epsilon(repeated(charged, 50), DELTA)
    for fewer in {0, colluders - 1}:  # fewer colluders, or more contributors: never more
        assert epsilon(repeated(seen_by_colluders(constants, sites, fewer), 50), DELTA) < paid
    assert epsilon(repeated(seen_by_colluders(constants, sites + 1, colluders), 50), DELTA) < paid
    # One colluder more than the study withstands, or one contributor less, is not covered.
    beyond = sites - colluders > 1
    assert (
        not beyond or epsilon(repeated(seen_by_colluders(constants, sites, colluders + 1), 50), DELTA) > paid
    )


# What others published


@pytest.mark.parametrize(
    ("eps", "sigma", "rate", "steps", "delta"),
    [  # Koskela, Jaelkoe and Honkela 2020: their Fourier accountant's own tests, add or remove one
        (1.0, 2.0, 0.01, 10_000, 0.010224911126651472),
        (0.8, 2.0, 0.01, 10_000, 0.022850339595771204),
        (1.0, 1.0, 0.01, 10_000, 0.2391763947364977),
        (1.0, 2.0, 0.02, 10_000, 0.14991732969314892),
    ],
)
def test_the_fourier_accountants_figures(
    eps: float, sigma: float, rate: float, steps: int, delta: float
) -> None:
    assert epsilon([SampledGaussian(sigma, rate, steps)], delta) == pytest.approx(eps, rel=2e-3)


@pytest.mark.parametrize(
    ("published", "sigma", "rate", "steps"),
    [
        # Abadi et al. 2016, section 5.1: 100 epochs, the moments accountant.
        (1.26, 4.0, 0.01, 10_000),
        # TensorFlow Privacy, tutorials/README.md: MNIST, batches of 256.
        (2.92, 1.12, 256 / 60_000, 60 * 60_000 // 256),
        (9.74, 0.6, 256 / 60_000, 30 * 60_000 // 256),
        (1.20, 1.2, 256 / 60_000, 10 * 60_000 // 256),
        # Bu, Dong, Long and Su 2020, figure 4: the moments accountant.
        (1.34, 1.3, 256 / 60_000, 20 * 60_000 // 256),
    ],
)
def test_the_moments_accountants_figures(published: float, sigma: float, rate: float, steps: int) -> None:
    """They convert divergences to epsilon by Mironov 2017, proposition 3, which our bound undercuts."""
    orders = np.array(accounting._ORDERS)
    divergences = steps * accounting._one_step_rdp(sigma, rate)
    then = float(np.min(divergences + math.log(1 / DELTA) / (orders - 1)))
    assert then == pytest.approx(published, rel=0.01)
    history = (SampledGaussian(sigma, rate, steps),)
    assert epsilon(history, DELTA) < accounting._rdp_epsilon(history, DELTA) < published * 1.005


def test_the_random_variable_accountants_figures() -> None:
    """Gopi, Lee and Wutschitz 2021: 10,000 steps over everybody at noise 100 are one Gaussian of noise 1,
    whose delta at epsilon 4 their accountant's tests compare with the closed form."""
    delta = float(norm.cdf(-4 + 0.5) - math.exp(4) * norm.cdf(-4 - 0.5))
    for history in ([SampledGaussian(100.0, 1.0, 10_000)], [Gaussian(100.0, 10_000)], [Gaussian(1.0)]):
        assert epsilon(history, delta) == pytest.approx(4.0, rel=1e-4)
        assert prv(merged(history), delta) == pytest.approx(4.0, abs=0.011)
    # Opacus, accountants_test.py: 6.777395712150674 by PRV, 7.32911117143 by RDP.
    history = [SampledGaussian(1.5, 0.04, 2250)]
    assert prv(history, DELTA) == pytest.approx(6.777395712150674, abs=5e-3)
    assert epsilon(history, DELTA) < 6.777395712150674
