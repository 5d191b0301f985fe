"""What each arm of the comparison on the heart data trains with: chosen by ``heart_grid``, never by the splits that
``heart_cv`` reports. Schedule (sampling rate, steps, rounds) and noise are the study's own and the same for all."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from cipherward.evaluation.accuracy.constants import Arm
from cipherward.site_agent.tasks.heart_disease.defaults import HEART_STUDY, StudyDefaults


@dataclass(frozen=True, slots=True)
class Step:
    """Of SGD. ``clip_norm`` plays no part without privacy."""

    learning_rate: float
    clip_norm: float


_PLAIN = Step(0.25, 0.5)
_CHOSEN: dict[float, dict[str, Step]] = {
    3.0: {
        "cleveland": Step(0.5, 1.0),
        "hungary": Step(0.5, 0.5),
        "switzerland": Step(1.0, 0.5),
        "va-long-beach": Step(0.5, 0.5),
        Arm.FEDAVG: Step(HEART_STUDY.learning_rate, HEART_STUDY.clip_norm),
        Arm.DP_FEDSGD: Step(1.0, 1.0),
    },
    1.0: {
        "cleveland": Step(0.25, 0.5),
        "hungary": Step(0.25, 0.5),
        "switzerland": Step(0.25, 0.5),
        "va-long-beach": Step(0.5, 0.5),
        Arm.FEDAVG: Step(0.25, 1.0),
        Arm.DP_FEDSGD: Step(2.0, 0.5),
    },
}
"""By epsilon, then by hospital for those that train alone, and by arm: pooled-dp takes dp-fedsgd's, from which it
differs by the noise alone."""


def steps(epsilon: float) -> dict[str, Step]:
    """Those chosen, by hospital and by arm; for another epsilon those of the nearest in ratio."""
    nearest = min(_CHOSEN, key=lambda one: abs(math.log(one / epsilon)))
    chosen = _CHOSEN[nearest]
    return {**chosen, Arm.POOLED_DP: chosen[Arm.DP_FEDSGD], Arm.POOLED: _PLAIN}


def with_step(study: StudyDefaults, step: Step) -> StudyDefaults:
    """The same study with this learning rate and clipping norm."""
    return replace(study, learning_rate=step.learning_rate, clip_norm=step.clip_norm)
