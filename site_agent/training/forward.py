"""The forward pass of a training step, for all ways to get gradients alike."""

from __future__ import annotations

from collections.abc import Callable

import torch

from cipherward.site_agent.tasks.base import Task
from cipherward.site_agent.training import metrics

MIXED = frozenset({"cuda"})
"""Kinds of device whose layers compute in bfloat16."""


def losses(
    task: Task,
    model: Callable[[torch.Tensor], torch.Tensor],
    features: torch.Tensor,
    labels: torch.Tensor,
) -> torch.Tensor:
    """One loss a record, (records,), with its graph; raises UsageError if the task gives another shape.

    On CUDA layers compute in bfloat16 where torch's autocast holds it safe; weights, losses and gradients of the
    weights stay float32.
    """
    if features.device.type in MIXED:
        with torch.autocast(features.device.type, torch.bfloat16):
            outputs = model(features).float()
    else:
        outputs = model(features)
    return metrics.one_a_record(task.loss(outputs, labels), len(features), task, "loss")
