"""The grid's training constants: public, one schedule for each arm and epsilon, never chosen on the test split.

How they were chosen: ``python -m cipherward.evaluation.accuracy.tuning`` trains with the learning rates and clipping
norms of RATES and CLIP_NORMS on eight IID sites, and takes the best by the AUC on the validation split
(``tuning.best``). Sampling rate, rounds and steps were fixed beforehand: 100 steps, which dp-fedsgd needs a round each
for.
"""

from __future__ import annotations

import math
from dataclasses import replace
from enum import StrEnum

from cipherward.evaluation.accuracy.studies import Schedule

EPSILONS = (1.0, 3.0, 8.0, math.inf)
RATES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
CLIP_NORMS = (0.3, 1.0)


class Arm(StrEnum):
    """What is compared."""

    ALONE = "alone"
    """Each site by itself with the same privacy."""
    FEDAVG = "fedavg"
    """Federated averaging, each site adding all of its own noise (local DP)."""
    DP_FEDSGD = "dp-fedsgd"
    """The sites share the noise of one DP-SGD on all patients."""
    POOLED_DP = "pooled-dp"
    """DP-SGD on all patients in one place."""
    POOLED = "pooled"
    """The same without privacy."""

    @property
    def central(self) -> bool:
        """All patients in one place: neither sites nor partition matter."""
        return self in (Arm.POOLED_DP, Arm.POOLED)

    def defined_at(self, epsilon: float) -> bool:
        """dp-fedsgd's uploads are made of its noise, and pooled-dp without it is pooled."""
        return (self is Arm.POOLED) if math.isinf(epsilon) and self not in _ANY else self is not Arm.POOLED


_ANY = (Arm.ALONE, Arm.FEDAVG)
_SHAPES = {
    # rounds, steps a round
    Arm.ALONE: (1, 100),
    Arm.FEDAVG: (10, 10),
    Arm.DP_FEDSGD: (100, 1),
    Arm.POOLED_DP: (100, 1),
    Arm.POOLED: (10, 30),
}
_METRICS_NOISE = {1.0: 30.0, 3.0: 10.0, 8.0: 5.0}
_CHOSEN: dict[Arm, dict[float, tuple[float, float]]] = {
    # epsilon: learning rate, clipping norm
    Arm.ALONE: {1.0: (3, 0.3), 3.0: (10, 0.3), 8.0: (30, 0.3), math.inf: (30, 1)},
    Arm.FEDAVG: {1.0: (10, 0.3), 3.0: (30, 0.3), 8.0: (100, 0.3), math.inf: (100, 1)},
    Arm.DP_FEDSGD: {1.0: (30, 0.3), 3.0: (100, 0.3), 8.0: (300, 0.3)},
    Arm.POOLED_DP: {1.0: (30, 0.3), 3.0: (100, 0.3), 8.0: (300, 0.3)},
    Arm.POOLED: {math.inf: (100, 1)},
}


def schedule(arm: Arm, epsilon: float) -> Schedule:
    """The constants chosen; for another epsilon those of the nearest in ratio."""
    known = _CHOSEN[arm]
    nearest = min(known, key=lambda one: _distance(one, epsilon))
    rate, clip_norm = known[nearest]
    return replace(shape(arm, epsilon), learning_rate=rate, clip_norm=clip_norm)


def shape(arm: Arm, epsilon: float) -> Schedule:
    """All but learning rate and clipping norm (1 and 1 here), which were fixed beforehand."""
    rounds, steps = _SHAPES[arm]
    noise = _METRICS_NOISE[min(_METRICS_NOISE, key=lambda one: _distance(one, epsilon))]
    return Schedule(
        rounds=rounds, steps=steps, sampling_rate=0.3, learning_rate=1.0, clip_norm=1.0, metrics_noise=noise
    )


def _distance(first: float, second: float) -> float:
    if first == second:
        return 0.0
    return abs(math.log(first) - math.log(second))
