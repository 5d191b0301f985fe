"""Means, spreads and intervals of repeated runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from cipherward.errors import UsageError

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean (of differences) and its confidence interval."""

    mean: float
    low: float
    high: float

    @property
    def includes_zero(self) -> bool:
        """Whether no difference is among what the runs allow."""
        return self.low <= 0 <= self.high


def paired_interval(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Student's t interval of the mean of first - second, one pair a seed.

    The pairs must be independent (each its own noise and split). Raises UsageError for lists of different
    lengths or fewer than two pairs.
    """
    if len(first) != len(second):
        raise UsageError(f"{len(first)} and {len(second)} runs make no pairs")
    return _interval(np.subtract(first, second), 1 / max(1, len(first)))


def corrected_interval(differences: NDArray[np.float64], test_fraction: float) -> Interval:
    """The corrected resampled t interval of Nadeau and Bengio (Machine Learning 52, 2003).

    ``differences``: one a repeat, paired, shape (R,), R >= 2. Repeats share patients, so the variance of
    their mean is taken as (1/R + test/train) times that of one difference in the place of 1/R: no number of
    repeats makes up for having only these patients. Raises UsageError for fewer than two.
    """
    return _interval(differences, 1 / max(1, len(differences)) + test_fraction / (1 - test_fraction))


def _interval(differences: NDArray[Any], inflation: float) -> Interval:
    count = len(differences)
    if count < 2:
        raise UsageError("an interval needs at least two repeats", fix="Ask for more repeats or seeds")
    spread = math.sqrt(inflation * float(differences.var(ddof=1)))
    half = float(student_t.ppf((1 + CONFIDENCE) / 2, count - 1)) * spread
    mean = float(differences.mean())
    return Interval(mean, mean - half, mean + half)
