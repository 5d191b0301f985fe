"""From right guesses to a lower bound on epsilon: Steinke, Nasr and Jagielski, "Privacy auditing with one (1)
training run" (NeurIPS 2023), theorem 5.2.

m canaries are each put into the training data by a fair coin. Whoever sees what was released guesses the coins of r
of them, and is right v times. If the release is (epsilon, delta)-differentially private, then

    P[right >= v] <= beta + 2 m delta max_i  P[v - i <= B < v] / i,    B ~ Binomial(r, e^eps / (e^eps + 1)),

with beta = P[B >= v]. An epsilon for which this is below 1 - confidence is refuted.
"""

from __future__ import annotations

import math

import numpy as np

from cipherward.errors import UsageError

_HIGHEST = 100.0


def p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """The chance of so many right guesses, at most, if the release were (``epsilon``, ``delta``)-private.

    Raises UsageError unless 0 <= right <= guesses <= canaries, epsilon >= 0 and 0 <= delta <= 1.
    """
    from scipy.stats import binom

    if not (0 <= right <= guesses <= canaries and epsilon >= 0 and 0 <= delta <= 1):
        raise UsageError(f"{right} right of {guesses} guesses about {canaries} canaries cannot be judged")
    rate = 1 / (1 + math.exp(-epsilon))
    beta = float(binom.sf(right - 1, guesses, rate))
    if right == 0:
        return 1.0
    within = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), guesses, rate))
    alpha = float(np.max(within / np.arange(1, right + 1)))
    return min(1.0, beta + 2 * canaries * delta * alpha)


def lower_bound(canaries: int, guesses: int, right: int, delta: float, confidence: float) -> float:
    """The largest epsilon that so many right guesses refute, with that confidence; 0 if they refute none.

    At most 100. Raises UsageError as ``p_value``, or for a confidence outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise UsageError(f"a confidence of {confidence} is not between 0 and 1")
    low, high = 0.0, _HIGHEST
    if p_value(canaries, guesses, right, low, delta) > 1 - confidence:
        return 0.0
    for _ in range(50):
        middle = (low + high) / 2
        if p_value(canaries, guesses, right, middle, delta) <= 1 - confidence:
            low = middle
        else:
            high = middle
    return low
