"""Intervals that ``statistics`` has not: of means, and of statistics that are resampled."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cipherward.errors import UsageError
from cipherward.evaluation.threats.row import Interval

SURE = 0.999
"""Level of the intervals that decide a row: noise and keys differ from run to run, and a row that fails by chance in
one run of 20 would soon not be believed."""


def mean(values: ArrayLike, level: float = SURE) -> Interval:
    """Student's interval of a mean. Raises UsageError for fewer than two values."""
    from scipy.stats import t

    sample = np.asarray(values, dtype=np.float64)
    if sample.size < 2:
        raise UsageError("an interval needs at least two values")
    estimate = float(sample.mean())
    half = float(t.ppf((1 + level) / 2, sample.size - 1)) * float(sample.std(ddof=1))
    half /= math.sqrt(sample.size)
    return Interval(estimate, estimate - half, estimate + half, level)


def seen_above(limit: float, what: str, found: Interval) -> str:
    """A note on power: what a rule that wants the interval ``found`` to end below ``limit`` would not miss."""
    return (
        f"Power: a real {what} of {limit:.2g} or more fails the row in all but {(1 - found.level) / 2:.2%} of runs, as "
        f"the interval must end below it; here it is {found.high - found.low:.3f} wide."
    )


def percentile(estimate: float, resampled: NDArray[np.float64], level: float) -> Interval:
    """The bootstrap's percentile interval (Efron 1979), from statistics of resampled data."""
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return Interval(estimate, float(low), float(high), level)
