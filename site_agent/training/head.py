"""Clipped sums for a model that is one linear layer, in closed form: a record's gradient is the residual times the
features, so its norm is the product of their norms, and those of the features are the same in every step."""

from __future__ import annotations

import torch
from torch import nn

from cipherward.site_agent.tasks.base import Task
from cipherward.site_agent.training import layers
from cipherward.site_agent.training.forward import losses


class Head:
    """Of a linear layer on the records' features, (n, inputs), where each patient has one record."""

    def __init__(self, task: Task, layer: nn.Linear, features: torch.Tensor) -> None:
        self._task = task
        self._layer = layer
        # |dL/dW|^2 + |dL/db|^2 = |residual|^2 (|features|^2 + 1)
        squares = (
            layers.squares(features.float()) if layer.weight.requires_grad else torch.zeros(len(features))
        )
        self._squares = squares + float(layer.bias is not None and layer.bias.requires_grad)

    @staticmethod
    def fits(model: nn.Module, features: torch.Tensor) -> bool:
        """Whether the model is such a layer."""
        return type(model) is nn.Linear and features.dim() == 2 and features.is_floating_point()

    def clipped_sum(
        self, rows: torch.Tensor, features: torch.Tensor, labels: torch.Tensor, clip_norm: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``Ghost.clipped_sum``; ``rows``: the records' numbers, on the CPU."""
        seen: list[torch.Tensor] = []

        def forward(x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                outputs: torch.Tensor = self._layer(x)
            seen.append(outputs.requires_grad_())
            return outputs

        total_loss = losses(self._task, forward, features, labels).sum()
        (residual,) = torch.autograd.grad(total_loss, seen)
        residual = residual.float()
        norms = (layers.squares(residual) * self._squares[rows].to(residual.device)).sqrt_()
        # A norm of zero gives infinity, clamped to 1.
        residual = residual * (clip_norm / norms).clamp_(max=1.0).float()[:, None]
        flat = []
        if self._layer.weight.requires_grad:
            flat.append((residual.T @ features.float()).flatten())
        if self._layer.bias is not None and self._layer.bias.requires_grad:
            flat.append(residual.sum(0))
        return torch.cat(flat).double(), norms
