"""A study's manifest for a simulated run: built, checked and signed by the product's own code, so that every rule on
thresholds, cohorts, noise and encoding holds here as it does among real hospitals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cipherward.crypto.manifest_rules import colluders_withstood, least_threshold
from cipherward.crypto.quorum.params import Q16, Q32, QuorumParams, own_params
from cipherward.crypto.quorum.params import parameters as quorum_parameters
from cipherward.crypto.shared_noise import METRICS_SENSITIVITY, NOISE_ROOM
from cipherward.crypto.strategies import SHARED_NOISE
from cipherward.crypto.study_file import StudyFile
from cipherward.crypto.suites.registry import suite
from cipherward.evaluation.demo.consortium import COORDINATOR, DemoConsortium
from cipherward.ids import DIGEST_BYTES
from cipherward.proto.v1.study_pb2 import Manifest
from cipherward.site_agent.ledger.accounting import (
    Gaussian,
    PrivacyEvent,
    SampledGaussian,
    calibrate_noise,
)
from cipherward.site_agent.training.constants import DpSgd, PlainSgd

DELTA = 1e-4
LOSS_BOUND = 2.0
_UNITS = 16
"""Of the encoding that a site's noise on the metrics has at least."""
_BOUND = 64.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A study's public constants but for what follows from its cohort and epsilon.

    ``metrics_noise``: of all rounds' metrics together, as if they were one release.
    """

    rounds: int
    steps: int
    sampling_rate: float
    learning_rate: float
    clip_norm: float
    metrics_noise: float

    @property
    def metrics_noise_multiplier(self) -> float:
        """Of one round's metrics."""
        return self.metrics_noise * math.sqrt(self.rounds)

    def noise_multiplier(self, epsilon: float) -> float:
        """sigma of a step, metrics included; 0 for an infinite epsilon."""
        if math.isinf(epsilon):
            return 0.0
        metrics = Gaussian(self.metrics_noise_multiplier, self.rounds)
        return calibrate_noise(epsilon, DELTA, self.sampling_rate, self.rounds * self.steps, [metrics])

    def events(self, sigma: float) -> list[PrivacyEvent]:
        """What the whole study costs each patient."""
        return [
            SampledGaussian(sigma, self.sampling_rate, self.rounds * self.steps),
            Gaussian(self.metrics_noise_multiplier, self.rounds),
        ]

    def local(self, sigma: float, patients: float) -> DpSgd | PlainSgd:
        """A round's constants where one trains alone on about so many patients. ``sigma`` 0: without privacy."""
        plain = PlainSgd(
            sampling_rate=self.sampling_rate,
            steps=self.steps,
            divisor=self.sampling_rate * patients,
            learning_rate=self.learning_rate,
            loss_bound=LOSS_BOUND,
            metrics_scale=patients,
        )
        if sigma == 0:
            return plain
        return DpSgd(
            **{field.name: getattr(plain, field.name) for field in fields(plain)},
            clip_norm=self.clip_norm,
            noise_multiplier=sigma,
            metrics_noise_multiplier=self.metrics_noise_multiplier,
        )


def honest_sites(sites: int) -> int:
    """h = k - c where all sites must contribute and as many may collude as the threshold withstands."""
    return sites - colluders_withstood(least_threshold(sites), sites)


def site_names(sites: int) -> list[str]:
    """Of simulated hospitals, in the roster's order."""
    return [f"site-{number:02}" for number in range(1, sites + 1)]


def study_file(
    schedule: Schedule, *, strategy: str, task: str, sites: int, patients: float, sigma: float
) -> StudyFile:
    """The study of so many sites with ``patients`` each, on average. ``sigma`` 0: without privacy."""
    shared = strategy == SHARED_NOISE
    params = quorum_parameters(*((Q16.name, 1.0) if shared else (Q32.name, _BOUND)), sites)
    dp: dict[str, Any] = {}
    if sigma:
        dp["dp"] = {
            "clipping_norm": schedule.clip_norm,
            "noise_multiplier": sigma,
            "delta": DELTA,
            "metrics": {"noise_multiplier": schedule.metrics_noise_multiplier},
        }
    return StudyFile.model_validate(
        {
            "study": {
                "name": "accuracy",
                "rounds": schedule.rounds,
                "coordinator": COORDINATOR,
                "strategy": strategy,
            },
            "task": {"name": task},
            "training": {
                "sampling_rate": schedule.sampling_rate,
                "steps": schedule.steps,
                "learning_rate": schedule.learning_rate,
                "batch_divisor": schedule.sampling_rate * patients,
                "dp_disabled": not sigma,
            },
            "metrics": {
                "loss_bound": LOSS_BOUND,
                "scale": metrics_scale(schedule, params, patients) if shared else 4 * patients,
            },
            **dp,
            "suite": {"name": params.suite, "parameters": params.name, "bound": params.bound},
            "cohort": {"minimum": sites},
            "deadlines": {"join_window": 300, "upload": 120, "acknowledge": 60, "unseal": 60, "verify": 120},
        }
    )


def metrics_scale(schedule: Schedule, params: QuorumParams, patients: float) -> float:
    """Room for the noise and four times an average site's patients, where the encoding is fine enough for it."""
    share = (
        schedule.metrics_noise_multiplier * METRICS_SENSITIVITY / math.sqrt(honest_sites(params.max_sites))
    )
    return min(share * params.scale / _UNITS, max(2 * NOISE_ROOM * share, 4 * patients))


class Signer:
    """A consortium of sites with made-up keys, whose root signs studies of theirs."""

    def __init__(self, consortium: DemoConsortium, sites: Sequence[str]) -> None:
        self._consortium = consortium
        for name in sites:
            consortium.enrol(name)

    def sign(self, study: StudyFile, start: NDArray[np.float32]) -> Manifest:
        """The manifest; UsageError for a study that breaks a rule."""
        return self._consortium.sign(study, start, bytes(DIGEST_BYTES))[1]


def params_of(manifest: Manifest) -> QuorumParams:
    """The parameters that all sites take."""
    entry = manifest.suite
    return own_params(suite(entry.name).parameters(entry.parameters, entry.bound, len(manifest.roster)))
