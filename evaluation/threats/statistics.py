"""Confidence intervals for what rows measure."""

from __future__ import annotations

import math

from cipherward.evaluation.threats.row import Interval


def proportion(successes: int, trials: int, level: float = 0.95) -> Interval:
    """Of a binomial probability, exact (Clopper and Pearson, Biometrika 26, 1934)."""
    from scipy.stats import beta

    tail = (1 - level) / 2
    low = float(beta.ppf(tail, successes, trials - successes + 1)) if successes else 0.0
    high = float(beta.ppf(1 - tail, successes + 1, trials - successes)) if successes < trials else 1.0
    return Interval(successes / trials, low, high, level)


def advantage(right: int, trials: int, level: float = 0.95) -> Interval:
    """2 P(right) - 1 of somebody who guesses one of two, from how often it was right."""
    found = proportion(right, trials, level)
    return Interval(2 * found.value - 1, 2 * found.low - 1, 2 * found.high - 1, level)


def detectable_advantage(trials: int, level: float, power: float = 0.9) -> float:
    """The smallest real advantage whose interval of ``level`` over ``trials`` excludes 0 with probability ``power``:
    what a row that asks for 0 would see. 1.0 if nothing smaller would."""
    from scipy.stats import binom

    # The fewest right guesses whose interval begins above a coin's.
    needed = next(
        (right for right in range(trials // 2, trials + 1) if advantage(right, trials, level).low > 0), 0
    )
    if not needed:
        return 1.0
    steps = range(1, 1000)
    seen = (step / 1000 for step in steps if binom.sf(needed - 1, trials, (1 + step / 1000) / 2) >= power)
    return next(seen, 1.0)


def split_level(tests: int, overall: float = 0.95) -> float:
    """The level of each of ``tests`` intervals that all hold together at ``overall`` (Bonferroni)."""
    return 1 - (1 - overall) / tests


def hoeffding(mean: float, trials: int, width: float, level: float = 0.95) -> Interval:
    """Of the mean of independent values in a range of ``width`` (Hoeffding, JASA 58, 1963)."""
    margin = width * math.sqrt(math.log(2 / (1 - level)) / (2 * trials))
    return Interval(mean, mean - margin, mean + margin, level)
