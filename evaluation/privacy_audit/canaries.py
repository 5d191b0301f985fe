"""Patients whose gradient is chosen: the worst case for privacy, as a task that the sites' training can run.

The model is one linear layer without bias and the loss is its output, so that a patient's gradient is the
patient's features, whatever the weights are. "Dirac canaries" (Steinke et al. 2023, section 6; Nasr et al. 2023)
have gradients along axes of their own: each shows in one coordinate only, and all are audited at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cipherward.site_agent.tasks.base import Records, Split, Task

if TYPE_CHECKING:
    import torch
    from torch import nn


class ChosenGradients(Task):
    """``gradients``: one row a patient, (n, P), float32. For audits: it is registered nowhere."""

    name = "chosen-gradients"

    def __init__(self, gradients: NDArray[np.float32]) -> None:
        self._gradients = gradients

    def model(self) -> nn.Module:
        """P weights."""
        from torch import nn

        return nn.Linear(self._gradients.shape[1], 1, bias=False)

    def load(self, source: str, split: Split) -> Records:
        """The patients, whatever the source."""
        import torch

        count = len(self._gradients)
        ids = tuple(f"patient-{number:07}" for number in range(count))
        return Records(torch.from_numpy(self._gradients), torch.zeros(count), ids)

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The output itself."""
        return outputs.reshape(len(labels))

    def correct(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Always: the metrics tell nothing here."""
        return labels == 0


def dirac(axes: NDArray[np.int64], parameters: int, norm: float) -> NDArray[np.float32]:
    """A patient for each of ``axes``, with a gradient of that norm along it: (len(axes), parameters)."""
    gradients = np.zeros((len(axes), parameters), dtype=np.float32)
    gradients[np.arange(len(axes)), axes] = norm
    return gradients
