"""Malignant or benign? Ten measures of cell nuclei, from the data set that scikit-learn carries.

Replace ``load`` by one that reads your hospital's data; the rest is what a task is.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cipherward.errors import UsageError
from cipherward.site_agent.tasks.base import BinaryTask, Records, Split
from cipherward.site_agent.tasks.splits import held_out_by_id, part

if TYPE_CHECKING:
    from torch import nn

# Low and high of each measure, rounded from the data set's public documentation. Never take them, or a mean,
# from your own patients: that would be a release that no privacy budget has paid for.
RANGES = (
    (6.0, 30.0),  # radius, mean over the nuclei
    (9.0, 40.0),  # texture
    (40.0, 190.0),  # perimeter
    (140.0, 2500.0),  # area
    (0.05, 0.17),  # smoothness
    (0.01, 0.35),  # compactness
    (0.0, 0.45),  # concavity
    (0.0, 0.2),  # concave points
    (0.1, 0.3),  # symmetry
    (0.05, 0.1),  # fractal dimension
)
_SOURCE = re.compile(r"part:(\d+)of(\d+)\Z")


class BreastCancer(BinaryTask):
    """Source ``part:KofN``: the K-th of N simulated hospitals. About a quarter of its patients are for testing."""

    name = "breast-cancer"

    def model(self) -> nn.Module:
        """Two layers; no BatchNorm, whose statistics DP-SGD cannot bound."""
        from torch import nn  # inside the method: the agent's daemon does not load torch

        return nn.Sequential(nn.Linear(len(RANGES), 8), nn.Tanh(), nn.Linear(8, 1))

    def load(self, source: str, split: Split) -> Records:
        """Features (n, 10) in [-1, 1]; label 1 is malignant."""
        import numpy as np
        import torch
        from sklearn.datasets import load_breast_cancer

        match = _SOURCE.match(source)
        if match is None:
            raise UsageError(f"{source!r} is not a source of this task", fix="Use part:KofN, e.g. part:1of4")
        data = load_breast_cancer()
        patients = [f"wdbc-{row:03}" for row in range(len(data.target))]
        malignant = {patient: int(label == 0) for patient, label in zip(patients, data.target, strict=True)}

        # ``part`` only makes hospitals of one fixed public data set; a hospital's own data needs none of it.
        chosen = part(malignant, int(match[1]), int(match[2]))
        test = held_out_by_id(chosen, 0.25)
        if split is not Split.ALL:
            chosen = test if split is Split.TEST else chosen - test
        rows = [row for row, patient in enumerate(patients) if patient in chosen]

        low, high = np.array(RANGES).T
        features = (2 * data.data[rows, : len(RANGES)] - low - high) / (high - low)
        return Records(
            features=torch.tensor(features.clip(-1, 1), dtype=torch.float32),
            labels=torch.tensor([malignant[patients[row]] for row in rows], dtype=torch.float32),
            patient_ids=tuple(patients[row] for row in rows),  # with several records a patient, repeat the id
        )
