"""DP-SGD at one site (Abadi et al., CCS 2016), with the patient as the unit of privacy.

Opacus's data-loader path is not used: that takes the sampling rate from 1/len(loader) and the divisor from
len(dataset), both of which depend on the data. Here every constant is the study's. One step:

1. Poisson: each patient is in the batch with probability q, independently, from a CSPRNG.
2. The gradients of a patient's records are summed; that sum is scaled to an L2 norm of at most C.
3. The patients' vectors are summed, N(0, (sigma C)^2) is added to each coordinate from the CSPRNG, and what
   results is rounded to a grid (``noise``).
4. The result is divided by the constant divisor; the weights move by it times the learning rate.

An empty batch takes the same noisy step. Sums within a batch are float32, between batches and with the noise
float64; adding or removing a patient moves the sum by at most C, up to float32 rounding in the other patients'
gradients (their kernels see another batch size).
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cipherward.crypto.randomness import KeyStream
from cipherward.crypto.shared_noise import NOISE_ROOM
from cipherward.errors import UsageError
from cipherward.site_agent.tasks.base import Records, Task
from cipherward.site_agent.training import metrics, weights
from cipherward.site_agent.training.constants import DpSgd, PlainSgd, SgdConstants, SharedNoise
from cipherward.site_agent.training.gradients import PatientGradients
from cipherward.site_agent.training.noise import Noise, gaussian_mechanism, noise_on

_SMALL_MODEL = 100_000
_CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
_MAX_THREADS = 8


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """``update``: (P,), float32, finite: new minus old weights, or with SharedNoise a site's part of the sum of
    gradients, in [-1, 1]. ``metrics``: of the model as it came in,
    (3,), see ``metrics.federated``. ``dropped``: patient gradients that were not finite and counted as zero;
    it is exact, so it stays at the hospital."""

    update: NDArray[np.float32]
    metrics: NDArray[np.float64]
    dropped: int


class Training:
    """Rounds at one site. What follows from the task and the records alone is made once for all of them."""

    def __init__(self, task: Task, records: Records) -> None:
        """Raises UsageError for a model that cannot be trained privately."""
        self._task, self._records = task, records
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = weights.build(task)
        self._model.to(self._device)
        if self._device.type == "cpu":
            torch.set_num_threads(cpu_threads(self._model))
        self._sampler = PatientGradients(task, self._model, records, self._device)

    def round(self, start: NDArray[np.float32], constants: SgdConstants, stream: KeyStream) -> TrainingResult:
        """One round, from the global weights ``start``, (P,).

        Raises UsageError for training that diverges, FormatError for weights that do not fit the model.
        """
        weights.assign(self._model, start)
        # Dropout and the like draw from torch's generators: they add no privacy, but must not repeat every round.
        _seed(self._device, int.from_bytes(stream.bytes(8), "little"))
        reported = metrics.federated(self._task, self._model, self._records, constants, stream)
        noise = noise_on(self._device, stream)
        if isinstance(constants, SharedNoise):
            update, dropped = _part_of_the_sum(self._sampler, constants, stream, noise)
            return TrainingResult(update, reported, dropped)
        dropped = self._steps(start, constants, stream, noise)
        update = weights.flatten(self._model) - start
        if not np.isfinite(update).all():
            raise UsageError(
                "training diverged",
                why="the weights grew beyond float32",
                fix="Lower the study's learning rate",
            )
        return TrainingResult(update, reported, dropped)

    def _steps(
        self,
        start: NDArray[np.float32],
        constants: SgdConstants,
        stream: KeyStream,
        noise: Noise,
    ) -> int:
        """A round's steps. Gives how many gradients were not finite."""
        sampler, dropped = self._sampler, 0
        proximal = constants.proximal if isinstance(constants, DpSgd | PlainSgd) else 0.0
        anchor = torch.from_numpy(start).to(self._device, torch.float64)
        for _ in range(constants.steps):
            chosen = np.flatnonzero(stream.uniform53(sampler.patients) < constants.sampling_rate)
            total, not_finite = sampler.clipped_sum(
                chosen, constants.clip_norm if isinstance(constants, DpSgd) else None
            )
            dropped += not_finite
            if isinstance(constants, DpSgd):
                total = gaussian_mechanism(total, constants.noise_multiplier * constants.clip_norm, noise)
            move = total.mul_(constants.learning_rate / constants.divisor)
            if proximal:
                # After the noise: it depends on released weights only.
                move += (constants.learning_rate * proximal) * (sampler.weights() - anchor)
            sampler.step(move)
        return dropped


def train(
    task: Task,
    records: Records,
    start: NDArray[np.float32],
    constants: SgdConstants,
    stream: KeyStream,
) -> TrainingResult:
    """One round at one site, as ``Training.round``."""
    return Training(task, records).round(start, constants, stream)


def _seed(device: torch.device, seed: int) -> None:
    """The generators of the CPU and of the device in use: torch.manual_seed also formats a stack trace for each kind of
    device that there is not."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def cpu_threads(model: torch.nn.Module) -> int:
    """As many as a step of the model gains from: threads cost a small model without convolutions more than they
    give."""
    values = sum(parameter.numel() for parameter in model.parameters())
    convolutions = any(isinstance(module, _CONVOLUTIONS) for module in model.modules())
    small = values < _SMALL_MODEL and not convolutions
    return 1 if small else min(len(os.sched_getaffinity(0)), _MAX_THREADS)


def _part_of_the_sum(
    sampler: PatientGradients, constants: SharedNoise, stream: KeyStream, noise: Noise
) -> tuple[NDArray[np.float32], int]:
    """A site's part of one step over all sites: its clipped sum with its share of the noise, in units of
    ``noise_range`` shares, in [-1, 1]. Float32, and how many gradients were not finite.

    A coordinate that is too large is cut before the noise, with room left for that: it keeps the sensitivity. Cut after
    it, a site's value, which has only its share of the noise, would be bent by itself, and what is opened would be no
    function of a sum with the whole noise. The last clamp only catches noise beyond NOISE_ROOM.
    """
    chosen = np.flatnonzero(stream.uniform53(sampler.patients) < constants.sampling_rate)
    total, dropped = sampler.clipped_sum(chosen, constants.clip_norm)
    limit = (constants.noise_range - NOISE_ROOM) * constants.noise_share
    total = gaussian_mechanism(total.clamp(-limit, limit), constants.noise_share, noise)
    part = total / (constants.noise_range * constants.noise_share)
    flat: NDArray[np.float32] = part.clamp(-1.0, 1.0).float().cpu().numpy()
    return flat, dropped
