"""The sites' training path, from the constants of a signed study to what a site would encrypt: the trainer's own
job, with its own secret stream, on patients whose gradients are chosen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cipherward.evaluation.privacy_audit.canaries import ChosenGradients
from cipherward.site_agent.training import jobs
from cipherward.site_agent.training.constants import DpSgd, SharedNoise
from cipherward.site_agent.training.metrics import SENSITIVITY
from cipherward.site_agent.training.protocol import Array

CLIP_NORM = 0.7
"""C: not 1, so that a place where it is forgotten shows."""
FEDAVG, DP_FEDSGD = "fedavg", "dp-fedsgd"
STRATEGIES = (FEDAVG, DP_FEDSGD)
METRICS_NOISE = 50.0
"""The metrics' noise multiplier: they tell nothing about canaries, and take little of the budget."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A study's numbers that matter to privacy. ``sites``, k, and ``colluders``, c, count with dp-fedsgd only, whose
    ``steps`` are 1 a round."""

    strategy: str
    noise_multiplier: float
    sampling_rate: float
    steps: int = 1
    rounds: int = 1
    metrics_noise_multiplier: float = METRICS_NOISE
    sites: int = 4
    colluders: int = 1
    noise_range: float = 32.0

    @property
    def honest(self) -> int:
        """h = k - c: contributors whose noise is in what the adversary sees."""
        return self.sites - self.colluders

    def constants(self) -> DpSgd | SharedNoise:
        """As the site's trainer gets them."""
        common = {
            "sampling_rate": self.sampling_rate,
            "divisor": 16.0,
            "learning_rate": 0.5,
            "loss_bound": 1.0,
            "metrics_scale": 1000.0,
            "clip_norm": CLIP_NORM,
            "noise_multiplier": self.noise_multiplier,
            "metrics_noise_multiplier": self.metrics_noise_multiplier,
        }
        if self.strategy == FEDAVG:
            return DpSgd(steps=self.steps, **common)
        return SharedNoise(steps=self.steps, honest=self.honest, noise_range=self.noise_range, **common)


def site_release(setting: Setting, gradients: NDArray[np.float32]) -> NDArray[np.float64]:
    """One site's round on these patients, in units of C: the sum over its steps of clipped gradients and noise.
    ``gradients``: (n, P), n >= 1. Returns (P,)."""
    constants, arrays = setting.constants(), _job(setting, gradients)
    update = arrays["update"].astype(np.float64)
    if isinstance(constants, SharedNoise):
        return update * constants.noise_range * constants.noise_share / constants.clip_norm
    return -update * constants.divisor / (constants.learning_rate * constants.clip_norm)


def metrics_noise(setting: Setting) -> NDArray[np.float64]:
    """The noise in one site's metrics, in units of their sensitivity: (3,)."""
    reported = _job(setting, np.zeros((1, 1), np.float32))["metrics"] * setting.constants().metrics_scale
    exact = np.array([0.0, 1.0, 1.0])  # of one patient without loss whose prediction is right
    noise: NDArray[np.float64] = (reported - exact) / SENSITIVITY
    return noise


def _job(setting: Setting, gradients: NDArray[np.float32]) -> dict[str, Array]:
    start = np.zeros(gradients.shape[1], dtype=np.float32)
    header = {"source": "", "constants": setting.constants().to_json()}
    # The job itself, without looking its task up among those installed.
    return jobs._train(ChosenGradients(gradients), header, {"weights": start})[1]
