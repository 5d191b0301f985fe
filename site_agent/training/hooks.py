"""Per-record gradients by Opacus's hooks: for every model that Opacus knows, at the price of one gradient a
record in memory."""

from __future__ import annotations

import warnings

import torch
from opacus.grad_sample import GradSampleModule
from torch import nn

from cipherward.site_agent.tasks.base import Task
from cipherward.site_agent.training import weights
from cipherward.site_agent.training.forward import losses


class Hooks:
    """Per-record gradients of one model."""

    def __init__(self, task: Task, model: nn.Module) -> None:
        self._task = task
        self._plain = model
        self._wrapped: GradSampleModule | None = None
        self._parameters = weights.trainable_parameters(model)

    def per_record(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """One gradient a record: (records, P), float32. Raises UsageError as ``losses``."""
        if self._wrapped is None:
            self._wrapped = GradSampleModule(self._plain, loss_reduction="sum")
        model = self._wrapped
        model.enable_hooks()
        model.zero_grad(set_to_none=True)
        with warnings.catch_warnings():
            # torch warns that hooks see no gradient with respect to the input: nobody asked for one.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            losses(self._task, model, features, labels).sum().backward()  # type: ignore[no-untyped-call]
        samples = []
        for parameter in self._parameters:
            gradient = getattr(parameter, "grad_sample", None)
            if gradient is None:  # these records do not reach it
                gradient = torch.zeros(len(features), parameter.numel(), device=features.device)
            samples.append(gradient.reshape(len(features), -1).float())
        model.zero_grad(set_to_none=True)
        model.disable_hooks()
        return torch.cat(samples, dim=1)
