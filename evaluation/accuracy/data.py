"""The patients of the grid: features of images by the imaging tasks' frozen extractor, labels 0 and 1, in MedMNIST's
three parts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cipherward.durable import explained
from cipherward.errors import UsageError
from cipherward.evaluation.accuracy.partition import Partition, deal
from cipherward.evaluation.accuracy.studies import site_names
from cipherward.evaluation.baselines import SiteData
from cipherward.site_agent.tasks.base import BinaryTask, Records
from cipherward.site_agent.tasks.medmnist import MedMnistBinaryHead, ready_features
from cipherward.site_agent.tasks.medmnist.files import PARTS, WANTED, present
from cipherward.site_agent.tasks.medmnist.npz import opened
from cipherward.site_agent.tasks.medmnist.prepare import Say, prepare

FEATURES = "features.npz"
"""In the study's folder, where it was given images."""


@dataclass(slots=True)
class Prepared:
    """``parts``: records of train, val and test. ``path``: the file of features, ``digest`` its SHA-256."""

    path: Path
    digest: str
    task: BinaryTask
    parts: dict[str, Records] = field(repr=False)
    _dealt: dict[tuple[int, Partition, int], tuple[list[NDArray[np.int64]], int]] = field(
        default_factory=dict, repr=False
    )

    def sites(self, count: int, partition: Partition, seed: int) -> list[SiteData]:
        """The training patients dealt to so many sites; all of them test on the common test part."""
        records = self.parts["train"]
        return [
            SiteData(name, _chosen(records, rows), self.parts["test"])
            for name, rows in zip(site_names(count), self._deal(count, partition, seed)[0], strict=True)
        ]

    def sources(self, count: int, partition: Partition, seed: int) -> dict[str, str]:
        """The same sites as an agent's data sets, by name."""
        draw = self._deal(count, partition, seed)[1]
        return {
            name: f"{self.path.resolve()}?{partition.options(site, count, draw)}"
            for site, name in enumerate(site_names(count), 1)
        }

    def _deal(self, count: int, partition: Partition, seed: int) -> tuple[list[NDArray[np.int64]], int]:
        key = (count, partition, seed)
        if key not in self._dealt:
            records = self.parts["train"]
            self._dealt[key] = deal(records.patient_ids, records.labels.numpy().astype(np.int64), *key)
        return self._dealt[key]


def features_of(path: Path, folder: Path, say: Say) -> Path:
    """The file itself if it holds features; for images, that of their features, made in ``folder`` the first time.

    Raises EnvironmentProblem or UsageError.
    """
    with opened(path, WANTED) as archive:
        if present(archive, "features") or not present(archive, "images"):
            return path
    made = folder / FEATURES
    if not made.exists():
        with explained("create", folder):
            folder.mkdir(parents=True, exist_ok=True)
        prepare(str(path), made, say)
    return made


def load(path: Path) -> Prepared:
    """The features' file. Raises EnvironmentProblem or UsageError."""
    import torch

    with explained("read", path), path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    parts = {}
    for part in PARTS:
        table = ready_features(_source(path), (part,), classes=2)
        if not len(table.labels):
            raise UsageError(f"cannot use {path}", why=f"it has no records in {part}")
        parts[part] = Records(
            torch.from_numpy(np.ascontiguousarray(table.values)),
            torch.from_numpy(table.labels).float(),
            table.patients,
        )
    return Prepared(path, digest, MedMnistBinaryHead(), parts)


def _source(path: Path) -> str:
    """A path that has a question mark itself ends with another one."""
    return f"{path}?" if "?" in str(path) else str(path)


def _chosen(records: Records, rows: NDArray[np.int64]) -> Records:
    import torch

    picked = torch.from_numpy(rows)
    return Records(
        records.features[picked],
        records.labels[picked],
        tuple(records.patient_ids[row] for row in rows.tolist()),
    )
