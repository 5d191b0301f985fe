"""A model as one flat float32 vector, in the order of ``named_parameters``: what is encrypted and summed."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cipherward.errors import FormatError, UsageError
from cipherward.site_agent.tasks.base import Task


def build(task: Task) -> nn.Module:
    """The task's model, checked: float32, trainable parameters only where the task froze none, no buffers.

    Parameters with ``requires_grad=False`` stay as the task builds them (its code is pinned) and are not in
    the vector. Raises UsageError for a model that cannot be trained privately.
    """
    model = task.model()
    buffers = [name for name, _ in model.named_buffers()]
    if buffers:
        raise UsageError(
            f"the model of task {task.name!r} has buffers ({', '.join(buffers[:3])})",
            why="they are statistics over patients that DP-SGD cannot bound, as BatchNorm keeps them",
            fix="Use GroupNorm or LayerNorm in the place of BatchNorm",
        )
    trainable = trainable_parameters(model)
    if not trainable:
        raise UsageError(f"the model of task {task.name!r} has nothing to train")
    if any(parameter.dtype != torch.float32 for parameter in trainable):
        raise UsageError(f"the model of task {task.name!r} has parameters that are not float32")
    return model


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """In the order of ``named_parameters``."""
    return [parameter for _, parameter in model.named_parameters() if parameter.requires_grad]


def count(model: nn.Module) -> int:
    """P, the length of the flat vector."""
    return sum(parameter.numel() for parameter in trainable_parameters(model))


def flatten(model: nn.Module) -> NDArray[np.float32]:
    """The trainable parameters, shape (P,), float32, a copy."""
    parts = [parameter.detach().cpu().reshape(-1) for parameter in trainable_parameters(model)]
    flat: NDArray[np.float32] = torch.cat(parts).numpy()
    return flat


def assign(model: nn.Module, vector: NDArray[np.float32]) -> None:
    """The inverse of ``flatten``. Raises FormatError for a wrong length or a number that is not finite."""
    expected = count(model)
    if vector.shape != (expected,):
        raise FormatError(
            f"the weights have shape {vector.shape}", why=f"the model has {expected} parameters"
        )
    if not np.isfinite(vector).all():
        raise FormatError("the weights contain NaN or infinity")
    flat = torch.from_numpy(np.array(vector, dtype=np.float32))
    start = 0
    with torch.no_grad():
        for parameter in trainable_parameters(model):
            parameter.copy_(flat[start : start + parameter.numel()].reshape(parameter.shape))
            start += parameter.numel()


def initial(task: Task, seed: int) -> NDArray[np.float32]:
    """The study's initial weights: the task's model built under ``torch.manual_seed(seed)``, shape (P,)."""
    torch.manual_seed(seed)
    return flatten(build(task))
