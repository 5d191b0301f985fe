"""Four tasks on images in the MedMNIST format (Yang et al. 2023, doi 10.1038/s41597-022-01721-8).

    medmnist               up to 16 classes, a small network on 28 x 28 pixels
    medmnist-binary        labels 0 and 1: one logit, AUC
    medmnist-head          up to 16 classes, a linear layer on features of a frozen network
    medmnist-binary-head   labels 0 and 1, likewise

A task's shapes never vary with the data, so there are four. Sources: see ``source``; files: see ``files``. The
features are made by ``prepare``. A study takes a file's train part and evaluates on its test part; nothing uses val:
that is for choosing constants, on public data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cipherward.errors import UsageError
from cipherward.site_agent.tasks.base import BinaryTask, Records, Split, Task
from cipherward.site_agent.tasks.medmnist import model
from cipherward.site_agent.tasks.medmnist.extractor import VERSION
from cipherward.site_agent.tasks.medmnist.files import CLASSES, FEATURES, Table, read
from cipherward.site_agent.tasks.medmnist.source import parse

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["MedMnist", "MedMnistBinary", "MedMnistBinaryHead", "MedMnistHead", "images", "ready_features"]

PARTS = {Split.TRAIN: ("train",), Split.TEST: ("test",), Split.ALL: ("train", "val", "test")}


def images(source: str, parts: tuple[str, ...], *, classes: int = CLASSES) -> Table:
    """The records of a file of images: ``values`` (n, 3, 28, 28) uint8. ``parts``: of train, val, test.

    Raises EnvironmentProblem if the file cannot be read, UsageError if it or the source is malformed.
    """
    found = read(parse(source), parts, kind="images", classes=classes, shrink=model.shrink)
    return Table(found.values.reshape(-1, 3, model.SIDE, model.SIDE), found.labels, found.patients)


def ready_features(source: str, parts: tuple[str, ...], *, classes: int = CLASSES) -> Table:
    """The records of a file that ``prepare`` wrote: ``values`` (n, 1280) float32, of norm at most 1. Raises as
    ``images``."""
    found = read(parse(source), parts, kind="features", classes=classes, extractor=VERSION)
    values = found.values.reshape(-1, FEATURES)
    # A NaN fails the comparison too.
    if not (np.square(values, dtype=np.float64).sum(axis=1) <= 1.001).all():
        raise UsageError(
            f"cannot use {source}", why="its features are not of norm 1", fix="Prepare them again"
        )
    return Table(values, found.labels, found.patients)


class MedMnist(Task):
    """Images of up to 16 classes, a small network."""

    name = "medmnist"

    def model(self) -> nn.Module:
        """Logits, (n, 16): a file with fewer classes leaves the others at nothing."""
        return model.network(CLASSES)

    def load(self, source: str, split: Split) -> Records:
        """Features (n, 3, 28, 28) uint8, labels (n,) int64."""
        return _records(images(source, PARTS[split]))

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy in nats."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs, labels, reduction="none")

    def correct(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Whether the largest logit is the label's."""
        return outputs.argmax(dim=1) == labels


class MedMnistHead(MedMnist):
    """Images of up to 16 classes, a linear layer on ready-made features."""

    name = "medmnist-head"

    def model(self) -> nn.Module:
        """Logits, (n, 16)."""
        return model.head(CLASSES)

    def load(self, source: str, split: Split) -> Records:
        """Features (n, 1280) float32, labels (n,) int64."""
        return _records(ready_features(source, PARTS[split]))


class MedMnistBinary(BinaryTask):
    """Images with the labels 0 and 1, a small network."""

    name = "medmnist-binary"

    def model(self) -> nn.Module:
        """One logit."""
        return model.network(1)

    def load(self, source: str, split: Split) -> Records:
        """Features (n, 3, 28, 28) uint8, labels (n,) float32."""
        return _records(images(source, PARTS[split], classes=2), binary=True)


class MedMnistBinaryHead(BinaryTask):
    """Images with the labels 0 and 1, a linear layer on ready-made features."""

    name = "medmnist-binary-head"

    def model(self) -> nn.Module:
        """One logit."""
        return model.head(1)

    def load(self, source: str, split: Split) -> Records:
        """Features (n, 1280) float32, labels (n,) float32."""
        return _records(ready_features(source, PARTS[split], classes=2), binary=True)


def _records(table: Table, *, binary: bool = False) -> Records:
    import torch

    values = np.ascontiguousarray(table.values)
    labels = torch.from_numpy(table.labels)
    return Records(torch.from_numpy(values), labels.float() if binary else labels, table.patients)
