"""Clipped sums of per-patient gradients from one forward and one backward pass (``layers``), for the models whose
layers it knows: linear, convolutional, GroupNorm and LayerNorm ones, each used once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import nn

from cipherward.site_agent.tasks.base import Task
from cipherward.site_agent.training import layers, weights
from cipherward.site_agent.training.forward import losses
from cipherward.site_agent.training.layers import Part, Slots
from cipherward.site_agent.training.separation import made_up

_CHECKED = 3
_TOLERANCE = 1e-3
_NOTHING = 1e-5
"""Of the whole gradient: what rounding leaves of one that is zero."""


class _Watch:
    """Notes what goes through the layers whose own parameters are trained, while it is asked to."""

    def __init__(self, model: nn.Module) -> None:
        self._watching = False
        self._seen = _Seen()
        for module in model.modules():
            if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
                module.register_forward_hook(self._note)

    def _note(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if self._watching:
            self._seen.modules.append(module)
            self._seen.inputs.append(inputs[0])
            self._seen.outputs.append(output)

    def __enter__(self) -> _Seen:
        self._watching, self._seen = True, _Seen()
        return self._seen

    def __exit__(self, *failure: object) -> None:
        self._watching, self._seen = False, _Seen()


@dataclass(slots=True)
class _Seen:
    """What the watched layers took and gave in a forward pass, in its order."""

    modules: list[nn.Module] = field(default_factory=list)
    inputs: list[torch.Tensor] = field(default_factory=list)
    outputs: list[torch.Tensor] = field(default_factory=list)


class Ghost:
    """Clipped sums for one model. Make it with ``for_model``."""

    def __init__(self, task: Task, model: nn.Module, watch: _Watch, values: int) -> None:
        self._task = task
        self._model = model
        self._watch = watch
        self._parameters = weights.trainable_parameters(model)
        self.values = values
        """Float32 values that a record needs in memory."""

    @classmethod
    def for_model(cls, task: Task, model: nn.Module, features: torch.Tensor) -> Ghost | None:
        """None if the model has layers that this way does not know, or uses them in a way that makes it wrong.

        The second is found out by comparing it with autograd's gradients on random inputs of the shape of
        ``features``, whose values are not looked at.
        """
        for module in model.modules():
            if getattr(module, "inplace", False):
                # It would overwrite the output of the layer before it, for Opacus's hooks too.
                setattr(module, "inplace", False)  # noqa: B010 - of whatever class
        pictures = features.is_floating_point() or features.dtype == torch.uint8
        if not pictures or not all(map(layers.supported, model.modules())):
            return None
        device = next(model.parameters()).device
        watch = _Watch(model)
        with watch as seen:
            outputs = model(made_up(features, _CHECKED, device))
        if len(set(seen.modules)) < len(seen.modules) or not _one_a_record(seen, _CHECKED):
            return None
        parameters = weights.trainable_parameters(model)
        target = (outputs * torch.randn_like(outputs)).sum()
        gradients = torch.autograd.grad(target, [*seen.outputs, *parameters], allow_unused=True)
        slots = Slots(2, 2, torch.tensor([0, 1, 1], device=device), torch.tensor([0, 0, 1], device=device))
        found = _parts(seen, gradients[: len(seen.outputs)], slots)
        factors = torch.ones(2, device=device)
        right = gradients[len(seen.outputs) :]
        whole = math.sqrt(sum(float(each.norm()) ** 2 for each in right if each is not None))
        for parameter, each in zip(parameters, right, strict=True):
            part = found.get(parameter)
            if (part is None) != (each is None):
                return None
            if part is not None and each is not None:
                error = float((part.weighted(factors) - each.flatten()).norm())
                if not error <= _TOLERANCE * float(each.norm()) + _NOTHING * whole:
                    return None
        through = list(zip(seen.modules, seen.inputs, seen.outputs, strict=True))
        # What the graph holds (a layer's output, what came back to it, and what other layers made of it), and
        # one layer's parts at a time, but for its gradients: as they are small where they are made, as if at once.
        held = sum(3 * output[0].numel() for output in seen.outputs)
        return cls(task, model, watch, held + max(layers.scratch(*each) for each in through))

    def clipped_sum(
        self, features: torch.Tensor, labels: torch.Tensor, slots: Slots, clip_norm: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum of the patients' gradients, each scaled to an L2 norm of at most ``clip_norm``: (P,), float64.

        And the norms, (patients,), float64. Where one is not finite, the sum is not to be used.
        """
        with self._watch as seen:
            total_loss = losses(self._task, self._model, features, labels).sum()
        gradients = torch.autograd.grad(total_loss, seen.outputs, allow_unused=True)
        found = _parts(seen, gradients, slots)
        squares = torch.zeros(slots.patients, dtype=torch.float64, device=features.device)
        for part in found.values():
            squares += part.squares
        norms = squares.sqrt_()
        factors = (clip_norm / norms).clamp_(max=1.0).float()  # a norm of zero gives infinity, clamped to 1
        flat = [
            found[parameter].weighted(factors)
            if parameter in found
            else torch.zeros_like(parameter).flatten()
            for parameter in self._parameters
        ]
        return torch.cat(flat).double(), norms


def _one_a_record(seen: _Seen, records: int) -> bool:
    tensors = [*seen.inputs, *seen.outputs]
    return all(tensor.dim() >= 2 and len(tensor) == records for tensor in tensors)


def _parts(seen: _Seen, gradients: tuple[torch.Tensor | None, ...], slots: Slots) -> dict[nn.Parameter, Part]:
    found: dict[nn.Parameter, Part] = {}
    for module, a, b in zip(seen.modules, seen.inputs, gradients, strict=True):
        if b is not None:  # None: these records' losses do not depend on it
            found.update(layers.parts(module, a, b, slots))
    return found
