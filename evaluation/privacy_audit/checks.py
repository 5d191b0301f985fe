"""What an audit in one run is too blunt to see, tested by itself on the same path: exactly, or by a statistic whose
limits a sound training passes but once in a billion times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, chi2, norm

from cipherward.evaluation.privacy_audit.canaries import dirac
from cipherward.evaluation.privacy_audit.path import (
    CLIP_NORM,
    DP_FEDSGD,
    Setting,
    metrics_noise,
    site_release,
)

FALSE_ALARM = 1e-9
_COORDINATES = 4096
_QUIET = 1e-2  # noise, in units of C, beside which a patient shows
_REACH = 1e6  # of dp-fedsgd's range: so that what is seen is the clipping, and not the range's end


@dataclass(frozen=True, slots=True)
class Check:
    """A figure and the limits within which it must lie."""

    name: str
    figure: float
    low: float
    high: float

    @property
    def passed(self) -> bool:
        """Limits included."""
        return self.low <= self.figure <= self.high


def standard_deviation(setting: Setting) -> Check:
    """Of the noise in what one site releases, over the promised: sigma C, or with shared noise sigma C / sqrt(h)."""
    one = replace(setting, steps=1, sampling_rate=1.0)
    noise = site_release(one, np.zeros((1, _COORDINATES), np.float32))
    promised = one.noise_multiplier / _shares(one) ** 0.5
    low, high = _chi2_limits(_COORDINATES)
    return Check("standard-deviation", _root_mean_square(noise) / promised, low, high)


def metrics_standard_deviation(setting: Setting) -> Check:
    """Of the noise in what one site says of the model, over the promised."""
    rounds = 200
    noise = np.concatenate([metrics_noise(setting) for _ in range(rounds)])
    promised = setting.metrics_noise_multiplier / _shares(setting) ** 0.5
    low, high = _chi2_limits(len(noise))
    return Check("metrics-standard-deviation", _root_mean_square(noise) / promised, low, high)


def sensitivity(setting: Setting) -> Check:
    """How far one patient moves the sum before the noise, in clipping norms: at most 1, and no less for a patient
    whose gradient is a thousand times that. Exact up to the little noise that is left on."""
    quiet = _quiet(setting, 1e-3)
    patient = np.full((1, 100), 1000 * CLIP_NORM / 10.0, np.float32)
    moved = float(np.linalg.norm(site_release(quiet, patient)))
    return Check("sensitivity", moved, 0.9, 1.0 + 0.1)


def poisson(setting: Setting) -> Check:
    """The variance of how many patients a step draws, over q (1 - q) n: 1 for Poisson sampling, and 0 where every
    batch has one size, which is what accounting for Poisson sampling does not hold for."""
    rate, patients, rounds = 0.25, 200, 100
    quiet = replace(_quiet(setting, _QUIET), sampling_rate=rate)
    gradients = dirac(np.arange(patients), patients, CLIP_NORM)
    drawn = np.array([(site_release(quiet, gradients) > 0.5).sum() for _ in range(rounds)])
    low, high = _chi2_limits(rounds)
    spread = float(np.mean((drawn - rate * patients) ** 2) / (rate * (1 - rate) * patients))
    return Check("poisson", spread, low**2, high**2)


def sampling_rate(setting: Setting) -> Check:
    """The share of patients that a step draws, over q."""
    rate, patients, rounds = 0.25, 400, 50
    quiet = replace(_quiet(setting, _QUIET), sampling_rate=rate)
    gradients = dirac(np.arange(patients), patients, CLIP_NORM)
    drawn = sum(int((site_release(quiet, gradients) > 0.5).sum()) for _ in range(rounds))
    total = patients * rounds
    low, high = binom.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], total, rate) / (total * rate)
    return Check("sampling-rate", drawn / (total * rate), float(low), float(high))


def fresh_noise(setting: Setting) -> Check:
    """Correlation of the noises of two rounds: 1 where a seed is used again, and their difference has none."""
    one = replace(setting, steps=1, sampling_rate=1.0)
    first, second = (site_release(one, np.zeros((1, _COORDINATES), np.float32)) for _ in range(2))
    limit = float(norm.isf(FALSE_ALARM / 2)) / _COORDINATES**0.5
    return Check("fresh-noise", _correlation(first, second), -limit, limit)


CHECKS: dict[str, Callable[[Setting], Check]] = {
    "standard-deviation": standard_deviation,
    "metrics-standard-deviation": metrics_standard_deviation,
    "sensitivity": sensitivity,
    "poisson": poisson,
    "sampling-rate": sampling_rate,
    "fresh-noise": fresh_noise,
}


def _quiet(setting: Setting, noise: float) -> Setting:
    return replace(setting, noise_multiplier=noise, sampling_rate=1.0, steps=1, noise_range=_REACH)


def _shares(setting: Setting) -> int:
    return setting.honest if setting.strategy == DP_FEDSGD else 1


def _root_mean_square(noise: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(noise**2)))


def _chi2_limits(count: int) -> tuple[float, float]:
    """For the root mean square of so many standard normal deviates."""
    low, high = np.sqrt(chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], count) / count)
    return float(low), float(high)


def _correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    if not (one.any() and other.any()):
        return 1.0  # no noise at all is the same noise
    return float(np.corrcoef(one, other)[0, 1])
