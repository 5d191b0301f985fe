"""The audit: canaries among the patients, what is released, guesses, and the bound that they prove.

The adversary is the strongest that the study's epsilon is promised against. ``fedavg``: whoever opens a site's
update, each round. ``dp-fedsgd``: the coordinator and c sites, who subtract their own parts from each round's sum.
Encryption is left out: it would only take from what they see. They chose all patients' gradients and know
everything but which canaries are in, the sampling and the noise.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cipherward.evaluation.privacy_audit.bound import lower_bound
from cipherward.evaluation.privacy_audit.canaries import dirac
from cipherward.evaluation.privacy_audit.path import (
    CLIP_NORM,
    DP_FEDSGD,
    METRICS_NOISE,
    Setting,
    site_release,
)
from cipherward.site_agent.ledger.accounting import (
    Gaussian,
    PrivacyEvent,
    SampledGaussian,
    calibrate_noise,
    epsilon,
)

LOUD = 10.0
"""A canary's gradient before clipping, in clipping norms."""
_GUESSED = (1.0, 0.5, 0.25, 0.1, 0.04)
"""Shares of the canaries that are guessed, the surest; each is one attempt, and the confidence is split evenly."""


@dataclass(frozen=True, slots=True)
class Audit:
    """``proved``: epsilon is above it, with that confidence. ``claimed``: what the ledger would take, metrics
    included. ``guesses`` and ``right`` are those of the attempt that proved most."""

    setting: Setting
    view: str
    canaries: int
    guesses: int
    right: int
    delta: float
    confidence: float
    claimed: float
    proved: float

    @property
    def holds(self) -> bool:
        """Nothing above the claim was proved."""
        return self.proved <= self.claimed

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "holds": self.holds}


def calibrated(
    strategy: str, target: float, delta: float, *, rate: float = 1.0, steps: int = 1, rounds: int = 1
) -> Setting:
    """A study with the least noise that the ledger lets pass under epsilon ``target`` at ``delta``."""
    sigma = calibrate_noise(target, delta, rate, steps * rounds, [Gaussian(METRICS_NOISE, rounds)])
    return Setting(strategy, sigma, rate, steps, rounds)


def cost(setting: Setting) -> tuple[PrivacyEvent, ...]:
    """What the ledger takes for the whole study."""
    return (
        SampledGaussian(setting.noise_multiplier, setting.sampling_rate, setting.steps * setting.rounds),
        Gaussian(setting.metrics_noise_multiplier, setting.rounds),
    )


def audit(
    setting: Setting,
    *,
    canaries: int,
    delta: float,
    seed: int,
    confidence: float = 0.95,
    opened: bool = False,
) -> Audit:
    """One audit. ``seed``: of the coins; the noise is the training's own. ``opened`` (dp-fedsgd): the adversary has
    opened one site's update, which only that site's share of the noise covers; the claim is then for that share."""
    inside = np.random.default_rng(seed).random(canaries) < 0.5
    shares = 1 if opened else setting.honest
    events, variance = cost(setting), setting.steps * setting.noise_multiplier**2
    if setting.strategy == DP_FEDSGD and opened:
        share = setting.honest**-0.5
        variance *= share**2
        events = (
            SampledGaussian(setting.noise_multiplier * share, setting.sampling_rate, setting.rounds),
            Gaussian(setting.metrics_noise_multiplier * share, setting.rounds),
        )
    seen = [_round(setting, inside, shares) for _ in range(setting.rounds)]
    scores = sum(likelihood(one, setting.steps, setting.sampling_rate, variance) for one in seen)
    guesses, right, proved = best_guesses(np.asarray(scores), inside, delta, confidence)
    view = (
        "one opened update"
        if opened or setting.strategy != DP_FEDSGD
        else "the sum, less the colluders' parts"
    )
    claimed = epsilon(events, delta)
    return Audit(setting, view, canaries, guesses, right, delta, confidence, claimed, proved)


def likelihood(seen: NDArray[np.float64], steps: int, rate: float, variance: float) -> NDArray[np.float64]:
    """The log of how much likelier each coordinate is with its canary than without: log sum_j Binomial(j; steps,
    rate) N(seen; j, variance) / N(seen; 0, variance). Shape as ``seen``."""
    from scipy.special import logsumexp
    from scipy.stats import binom

    drawn = np.arange(steps + 1)
    terms = binom.logpmf(drawn, steps, rate) + (2 * seen[:, None] * drawn - drawn**2) / (2 * variance)
    found: NDArray[np.float64] = logsumexp(terms, axis=1)
    return found


def best_guesses(
    scores: NDArray[np.float64], inside: NDArray[np.bool_], delta: float, confidence: float
) -> tuple[int, int, float]:
    """Guess "in" for the highest scores and "out" for the lowest, as many of each; (guesses, right, bound)."""
    order, found = np.argsort(scores, kind="stable"), (0, 0, 0.0)
    for share in _GUESSED:
        half = max(1, int(share * len(scores) / 2))
        right = int((~inside[order[:half]]).sum() + inside[order[-half:]].sum())
        proved = lower_bound(len(scores), 2 * half, right, delta, 1 - (1 - confidence) / len(_GUESSED))
        found = max(found, (2 * half, right, proved), key=lambda one: one[2])
    return found


def _round(setting: Setting, inside: NDArray[np.bool_], shares: int) -> NDArray[np.float64]:
    """What the adversary sees of a round, (canaries,), in units of C: each canary in its own coordinate."""
    axes = np.flatnonzero(inside)
    if setting.strategy != DP_FEDSGD:
        return site_release(setting, dirac(axes, len(inside), LOUD * CLIP_NORM))
    total = np.zeros(len(inside))
    for site in range(shares):
        here = axes[site::shares]
        total += site_release(setting, dirac(here, len(inside), LOUD * CLIP_NORM))
    return total
