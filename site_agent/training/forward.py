"""The forward pass of a training step, for all ways to get gradients alike."""

from __future__ import annotations

import torch
from torch import nn

from cipherward.site_agent.tasks.base import Task
from cipherward.site_agent.training import metrics


def losses(task: Task, model: nn.Module, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """One loss a record, (records,), with its graph; raises UsageError if the task gives another shape.

    On CUDA layers compute in bfloat16 where torch's autocast holds it safe; weights, losses and gradients of the
    weights stay float32.
    """
    with torch.autocast(features.device.type, torch.bfloat16, enabled=features.device.type == "cuda"):
        outputs = model(features)
    if outputs.dtype == torch.bfloat16:
        outputs = outputs.float()
    return metrics.one_a_record(task.loss(outputs, labels), len(features), task, "loss")
