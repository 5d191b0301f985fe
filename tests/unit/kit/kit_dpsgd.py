"""Small models and made-up patients for DP-SGD."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cipherward.crypto.randomness import KeyStream
from cipherward.site_agent.tasks.base import BinaryTask, Records, Split, Task
from cipherward.site_agent.training import weights
from cipherward.site_agent.training.constants import DpSgd, PlainSgd
from cipherward.site_agent.training.gradients import PatientGradients

CPU = torch.device("cpu")
FEATURES = 4
PLAIN = PlainSgd(
    sampling_rate=1.0, steps=5, divisor=8.0, learning_rate=0.5, loss_bound=2.0, metrics_scale=10.0
)
PRIVATE = DpSgd(
    sampling_rate=0.5, steps=5, divisor=8.0, learning_rate=0.5, loss_bound=2.0, metrics_scale=10.0,
    clip_norm=0.7, noise_multiplier=1.3, metrics_noise_multiplier=4.0,
)  # fmt: skip


class Network(BinaryTask):
    """A small network with a nonlinearity."""

    name = "network"

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(FEATURES, 3), nn.Tanh(), nn.Linear(3, 1))

    def load(self, source: str, split: Split) -> Records:
        raise NotImplementedError


class Wide(Network):
    """Many parameters, for statistics over coordinates."""

    def model(self) -> nn.Module:
        return nn.Linear(5000, 1)


def some_records(
    owners: list[int], *, seed: int = 0, scale: float = 1.0, features: int = FEATURES
) -> Records:
    generator = torch.Generator().manual_seed(seed)
    return Records(
        scale * torch.randn(len(owners), features, generator=generator),
        torch.randint(0, 2, (len(owners),), generator=generator).float(),
        tuple(f"p{owner}" for owner in owners),
    )


def without(records: Records, patient: str) -> Records:
    keep = [number for number, name in enumerate(records.patient_ids) if name != patient]
    return Records(
        records.features[keep], records.labels[keep], tuple(records.patient_ids[number] for number in keep)
    )


def stream(number: int = 0) -> KeyStream:
    return KeyStream(number.to_bytes(32, "big"))


def network_start(task: Task | None = None) -> NDArray[np.float32]:
    return weights.initial(task or Network(), 3)


def sum_over_everyone(records: Records, clip_norm: float | None, start: NDArray[np.float32]) -> torch.Tensor:
    model = Network().model()
    weights.assign(model, start)
    gradients = PatientGradients(Network(), model, records, CPU)
    return gradients.clipped_sum(np.arange(gradients.patients), clip_norm)[0]
