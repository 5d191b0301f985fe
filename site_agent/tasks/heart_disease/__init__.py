"""The built-in task: does a patient have heart disease (narrowing of a major vessel by more than half)?

Logistic regression on 22 features: 23 parameters. A network with one hidden layer was measured beside it and
is no better at this size (``python -m cipherward.evaluation.heart_grid``, docs/accuracy.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cipherward.site_agent.tasks.base import BinaryTask, Records, Split
from cipherward.site_agent.tasks.heart_disease.data import FEATURES, Row, rows

if TYPE_CHECKING:
    from torch import nn

__all__ = ["HeartDisease"]


class HeartDisease(BinaryTask):
    """UCI Heart Disease, label ``num > 0``. Sources: see ``data.rows``."""

    name = "heart-disease"

    def model(self) -> nn.Module:
        """Logistic regression, from zero: the loss is convex, so a random start would only add noise."""
        from torch import nn

        layer = nn.Linear(FEATURES, 1)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        return layer

    def load(self, source: str, split: Split) -> Records:
        """Features (n, 22) and labels (n,), float32."""
        return to_records(rows(source, split))


def to_records(chosen: list[Row]) -> Records:
    """The rows as tensors, in the same order."""
    import torch

    return Records(
        features=torch.tensor([row.features for row in chosen], dtype=torch.float32).reshape(-1, FEATURES),
        labels=torch.tensor([row.label for row in chosen], dtype=torch.float32),
        patient_ids=tuple(row.patient for row in chosen),
    )
