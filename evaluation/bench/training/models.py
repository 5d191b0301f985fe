"""The three models that are measured: a head on frozen features, a small CNN, a ResNet-18; both with GroupNorm, as
DP-SGD needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from cipherward.site_agent.tasks.base import Records, Split, Task

_LABELS = 2


@dataclass(frozen=True, slots=True)
class Size:
    """Shape of one record, and records in a batch on a CPU and on a GPU."""

    shape: tuple[int, ...]
    cpu_batch: int
    gpu_batch: int


class Measured(Task):
    """A task with made-up data: only time is measured."""

    size: Size

    def load(self, source: str, split: Split) -> Records:
        """``source``: how many patients; ``/`` how many records each, e.g. ``64/1``."""
        patients, each = (int(number) for number in source.split("/"))
        return Records(
            torch.randn(patients * each, *self.size.shape),
            torch.randint(0, _LABELS, (patients * each,)),
            tuple(f"p{number // each:06}" for number in range(patients * each)),
        )

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy in nats."""
        return nn.functional.cross_entropy(outputs, labels, reduction="none")

    def correct(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Whether the largest output is the label's."""
        return outputs.argmax(1) == labels


class Head(Measured):
    """A linear head on the 1,280 features of a frozen EfficientNet."""

    name = "head"
    size = Size((1280,), 1024, 2048)

    def model(self) -> nn.Module:
        """2,562 parameters."""
        return nn.Linear(1280, _LABELS)


class SmallCnn(Measured):
    """Three convolutions on 28 x 28 grey pictures."""

    name = "small-cnn"
    size = Size((1, 28, 28), 64, 1024)

    def model(self) -> nn.Module:
        """About 60,000 parameters."""
        layers: list[nn.Module] = []
        channels = 1
        for width in (32, 64, 64):
            layers += [
                nn.Conv2d(channels, width, 3, padding=1),
                nn.GroupNorm(8, width),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
            channels = width
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, _LABELS))


class ResNet18(Measured):
    """ResNet-18 (He et al., CVPR 2016) with GroupNorm on 224 x 224 colour pictures."""

    name = "resnet-18"
    size = Size((3, 224, 224), 8, 64)

    def model(self) -> nn.Module:
        """11.2 M parameters."""
        stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.GroupNorm(32, 64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        blocks: list[nn.Module] = []
        channels = 64
        for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            blocks += [_Block(channels, width, stride), _Block(width, width, 1)]
            channels = width
        return nn.Sequential(
            *stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, _LABELS)
        )


class _Block(nn.Module):
    """Two convolutions and a shortcut around them."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, 1, bias=False),
            nn.GroupNorm(32, width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.GroupNorm(32, width),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, width, 1, stride, bias=False), nn.GroupNorm(32, width)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu(self.body(x) + self.shortcut(x))


MODELS: tuple[type[Measured], ...] = (Head, SmallCnn, ResNet18)
