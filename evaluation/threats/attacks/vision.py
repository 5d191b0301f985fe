"""The image-classification task that the attacks are mounted on, and one round of a site's real training on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cipherward.crypto.randomness import KeyStream
from cipherward.errors import UsageError
from cipherward.evaluation.threats.attacks.images import ImageSet, Pixels
from cipherward.evaluation.threats.bypass import replaced
from cipherward.proto.v1.study_pb2 import Manifest, RosterSite, Strategy
from cipherward.site_agent.strategy.fedavg import STRATEGY
from cipherward.site_agent.tasks.base import Records, Split, Task
from cipherward.site_agent.training import dpsgd, weights
from cipherward.site_agent.training.constants import DpSgd, PlainSgd, SgdConstants

_CHANNELS = 8


class ConvNet(nn.Module):
    """Two convolutions with sigmoids and a linear layer: the LeNet of Zhu et al. 2019, for small images."""

    def __init__(self, side: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, _CHANNELS, 3, padding=1)
        self.second = nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1, stride=2)
        self.last = nn.Linear(_CHANNELS * ((side + 1) // 2) ** 2, classes)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, 1, side, side) -> (n, classes)."""
        hidden = torch.sigmoid(self.second(torch.sigmoid(self.first(pixels))))
        logits: torch.Tensor = self.last(hidden.flatten(1))
        return logits


class Perceptron(nn.Module):
    """One hidden layer with ReLU."""

    def __init__(self, side: int, classes: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(side * side, hidden)
        self.last = nn.Linear(hidden, classes)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, 1, side, side) -> (n, classes)."""
        logits: torch.Tensor = self.last(torch.relu(self.first(pixels.flatten(1))))
        return logits


class VisionTask(Task):
    """Classification of an ``ImageSet``. Not installed: the evaluation hands it to the training code."""

    name = "threats-vision"

    def __init__(self, images: ImageSet, hidden: int | None = None) -> None:
        """``hidden``: units of a ``Perceptron``; by default a ``ConvNet``."""
        self.images, self.hidden = images, hidden

    def model(self) -> nn.Module:
        """A new model, from torch's global generator."""
        if self.hidden is None:
            return ConvNet(self.images.side, self.images.classes)
        return Perceptron(self.images.side, self.images.classes, self.hidden)

    def load(self, source: str, split: Split) -> Records:
        """There are no sources: the attacks make ``records`` themselves."""
        raise UsageError("the evaluation's vision task reads no sources")

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy in nats."""
        return nn.functional.cross_entropy(outputs, labels, reduction="none")

    def correct(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Whether the largest logit is the label's."""
        return outputs.argmax(dim=1) == labels


def records(images: ImageSet, patients: Sequence[str] | None = None) -> Records:
    """The images as a site's records; by default each is a patient of its own."""
    names = tuple(f"p{index:06d}" for index in range(len(images.labels))) if patients is None else patients
    return Records(
        torch.from_numpy(images.pixels[:, None].copy()), torch.from_numpy(images.labels), tuple(names)
    )


def initial(task: Task, seed: int) -> NDArray[np.float32]:
    """Initial weights, (P,), float32."""
    return weights.initial(task, seed)


def plain_step(patients: int) -> PlainSgd:
    """The constants that help an attacker most: every patient in one step, learning rate 1, no privacy."""
    return PlainSgd(
        sampling_rate=1.0,
        steps=1,
        divisor=float(patients),
        learning_rate=1.0,
        loss_bound=4.0,
        metrics_scale=200.0,
    )


def private_step(patients: int, clip_norm: float, noise_multiplier: float) -> DpSgd:
    """The same with differential privacy."""
    return DpSgd(
        **asdict(plain_step(patients)),
        clip_norm=clip_norm,
        noise_multiplier=noise_multiplier,
        metrics_noise_multiplier=10.0,
    )


def update(
    task: Task, site: Records, start: NDArray[np.float32], constants: SgdConstants
) -> NDArray[np.float32]:
    """What the site trains for real from the global weights ``start``: new minus old weights, (P,)."""
    # One thread: rows run side by side, and threads that wait for each other on a busy machine cost a hundredfold.
    with replaced(dpsgd, "cpu_threads", lambda _: 1):
        return dpsgd.train(task, site, start, constants, KeyStream()).update


def as_gradient(moved: NDArray[np.floating[Any]], constants: SgdConstants) -> NDArray[np.float64]:
    """An update of one step read back as the sum of the patients' gradients, (..., P)."""
    return -moved.astype(np.float64) * (constants.divisor / constants.learning_rate)


def server_step(state: NDArray[np.float32], updates: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The next global model: federated averaging as the sites do it, with equal weights."""
    names = [f"site-{index}" for index in range(len(updates))]
    manifest = Manifest(
        roster=[RosterSite(name=name, weight=1.0) for name in names],
        parameter_count=len(state),
        strategy=Strategy(name="fedavg", server_learning_rate=1.0),
    )
    return STRATEGY.server_step(state, np.sum(updates, axis=0, dtype=np.float64), manifest, names)


def as_pixels(tensor: torch.Tensor) -> Pixels:
    """Images of any leading shape with their one channel taken off, as float32."""
    pixels: Pixels = tensor.detach().squeeze(-3).to(torch.float32).numpy()
    return pixels
