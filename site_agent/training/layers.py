"""Per-patient gradients of single layers, from what went into a layer and what came back to it.

A layer that maps activations a_t to W a_t at positions t (one for a vector, many for an image or a sequence)
has the gradient sum_t b_t a_t^T, where b_t is the gradient with respect to the layer's output. A patient with
several records has more positions, no more. Norm and sum of the patients' gradients come in three ways:

- one position: the norm is |a| |b|; no gradient is ever made.
- few positions, large W ("ghost"): |sum_t b_t a_t^T|^2 = sum_st <a_s, a_t> <b_s, b_t> (Goodfellow 2015;
  Li et al., "Large language models can be strong differentially private learners", ICLR 2022, section 4.1).
- many positions, small W: the gradients themselves.

In all of them the clipped sum comes from the same a and b, so that no second backward pass is needed (Bu et
al., "Differentially private optimization on large model at small cost", ICML 2023). Which of the last two
is taken is fixed by the layer's shape, see ``GHOST_RATIO``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from torch.nn.grad import conv2d_weight

GHOST_RATIO = 16.0
"""Ghost where T^2 (p + D) < 16 p D for T positions, D inputs, p outputs. Measured on a CPU (one thread, batches
of 8 and 64): at ratios of 5 to 6 (ResNet-18's last stage, 512 channels at 7 x 7) ghost takes 14 to 31 ms where
gradients take 107 to 216; at 14 to 42, 2.2 and 10.4 against 1.9 and 9.6; at 170, as long; at 700, six times as
long."""
_UNDERESTIMATE = 2.0**-16
_LOST = 2.0**-126
"""Of a squared norm, for each value: the square of one below 2**-63 is no normal float32 and may count as zero."""

Sum = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Slots:
    """Where the records of a batch belong: record i is one of patient ``owner[i]``'s, at ``place[i]`` of
    ``places`` (what is left over counts as zero). With one place, record i is all of patient i, and the two
    are not needed."""

    patients: int
    places: int = 1
    owner: torch.Tensor | None = None
    place: torch.Tensor | None = None

    def stack(self, values: torch.Tensor) -> torch.Tensor:
        """(records, ...) to (patients, places, ...)."""
        if self.owner is None or self.place is None:
            return values.unsqueeze(1)
        out = values.new_zeros(self.patients * self.places, *values.shape[1:])
        out.index_copy_(0, self.owner * self.places + self.place, values)
        return out.view(self.patients, self.places, *values.shape[1:])

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """(records, ...) to (patients, ...), each the sum over a patient's records."""
        if self.owner is None:
            return values
        return values.new_zeros(self.patients, *values.shape[1:]).index_add_(0, self.owner, values)


@dataclass(frozen=True, slots=True)
class Part:
    """A parameter's share: the squared norm of each patient's gradient, (patients,), float64, and the sum of
    the patients' gradients times given factors, flat."""

    squares: torch.Tensor
    weighted: Sum


def parts(module: nn.Module, a: torch.Tensor, b: torch.Tensor, slots: Slots) -> dict[nn.Parameter, Part]:
    """Of the module's parameters. ``a``: its input, ``b``: the gradient with respect to its output, both
    (records, ...). ``supported`` must hold for the module."""
    a, b = a.detach().float(), b.float()
    if isinstance(module, nn.Linear):
        found = _linear(
            module, a.reshape(len(a), 1, -1, a.shape[-1]), b.reshape(len(b), 1, -1, b.shape[-1]), slots
        )
    elif isinstance(module, nn.Conv2d | nn.Conv1d):
        found = _convolution(module, a, b, slots)
    elif isinstance(module, nn.GroupNorm | nn.LayerNorm):
        found = _normalisation(module, a, b, slots)
    else:
        raise TypeError(f"{type(module).__name__} is not supported")
    return {
        tensor: part for tensor, part in found if isinstance(tensor, nn.Parameter) and tensor.requires_grad
    }


def supported(module: nn.Module) -> bool:
    """Whether ``parts`` knows the module; one without trainable parameters of its own needs no knowing."""
    if not any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
        return True
    if type(module) in (nn.Conv1d, nn.Conv2d):
        return module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return type(module) in (nn.Linear, nn.GroupNorm, nn.LayerNorm)


def scratch(module: nn.Module, a: torch.Tensor, b: torch.Tensor) -> int:
    """About how many float32 values ``parts`` makes for one record: patches, and gradients where they are made."""
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        count = b[0, 0].numel()
        inputs, outputs = module.weight[0].numel(), module.weight.shape[0] // module.groups
        gradient = 0 if _ghost(count, inputs, outputs) else module.weight.numel()
        return inputs * module.groups * count + gradient
    return a[0].numel() + b[0].numel()


_Found = list[tuple[torch.Tensor | None, Part]]


def _linear(
    module: nn.Linear | nn.Conv1d | nn.Conv2d, a: torch.Tensor, b: torch.Tensor, slots: Slots
) -> _Found:
    """``a``: (records, groups, positions, inputs), ``b``: (records, groups, positions, outputs)."""
    if a.shape[2] == 1 and slots.places == 1 and a.shape[1] == 1:
        weight = _one_position(a[:, 0, 0], b[:, 0, 0])
    elif _ghost(a.shape[2] * slots.places, a.shape[3], b.shape[3]):
        weight = _ghosts(a, b, slots)
    else:
        weight = _gradients(a, b, slots)
    return [(module.weight, weight), (module.bias, _bias(b.sum(2).flatten(1), slots))]


def _bias(gradients: torch.Tensor, slots: Slots) -> Part:
    return _explicit(slots.total(gradients))


def _ghost(count: int, inputs: int, outputs: int) -> bool:
    return count * count * (inputs + outputs) < GHOST_RATIO * inputs * outputs


def _one_position(a: torch.Tensor, b: torch.Tensor) -> Part:
    return Part(squares(a) * squares(b), lambda factors: ((b * factors[:, None]).T @ a).flatten())


def _ghosts(a: torch.Tensor, b: torch.Tensor, slots: Slots) -> Part:
    a, b = (
        slots.stack(x).transpose(1, 2).flatten(2, 3) for x in (a, b)
    )  # (patients, groups, positions, ...)
    of_a, of_b = a @ a.mT, b @ b.mT
    found = (of_a * of_b).sum((1, 2, 3), dtype=torch.float64)
    # Where the positions' gradients cancel, rounding could make the norm too small, and the patient's part
    # of the sum too large: what rounding can take away is added.
    of_a, of_b = (gram.diagonal(dim1=2, dim2=3).clamp(min=0).double() for gram in (of_a, of_b))
    found = found.clamp_(min=0) + _UNDERESTIMATE * (of_a * of_b).sqrt_().sum((1, 2)).square_()
    for lengths, others in ((of_a, b), (of_b, a)):
        found += others.shape[3] * _LOST * lengths.sqrt().sum((1, 2)).square_()

    def weighted(factors: torch.Tensor) -> torch.Tensor:
        # (groups, outputs, patients x positions) @ (groups, patients x positions, inputs)
        left = (b * factors[:, None, None, None]).transpose(0, 1).flatten(1, 2)
        return (left.mT @ a.transpose(0, 1).flatten(1, 2)).flatten()

    return Part(found, weighted)


def _gradients(a: torch.Tensor, b: torch.Tensor, slots: Slots) -> Part:
    return _explicit(slots.total((b.mT @ a).flatten(1)))


def _explicit(gradients: torch.Tensor) -> Part:
    """From the gradients themselves, (patients, values)."""
    return Part(squares(gradients), lambda factors: factors @ gradients)


def squares(values: torch.Tensor) -> torch.Tensor:
    """Of the rows' L2 norms, never too small but for rounding: (n, values) to (n,), float64."""
    # Summed in float32, pairwise: a float64 norm takes four times as long. Overflow counts as not finite.
    found: torch.Tensor = torch.linalg.vecdot(values, values)
    return found.double() + values.shape[1] * _LOST


def _convolution(module: nn.Conv1d | nn.Conv2d, a: torch.Tensor, b: torch.Tensor, slots: Slots) -> _Found:
    """As a linear map of the patches, or record by record."""
    if isinstance(module, nn.Conv1d):
        a, b = a.unsqueeze(2), b.unsqueeze(2)
    kernel, stride, padding, dilation = (
        _pair(size, fill)
        for size, fill in (
            (module.kernel_size, 1), (module.stride, 1), (module.padding, 0), (module.dilation, 1)
        )
    )  # fmt: skip
    single_point = kernel == (1, 1) and padding == (0, 0)
    inputs, outputs = module.weight[0].numel(), module.out_channels // module.groups
    count = b[0, 0].numel() * slots.places
    if a.device.type == "cpu" and not single_point and not _ghost(count, inputs, outputs):
        shape = module.weight.shape if a.dim() == module.weight.dim() else module.weight.unsqueeze(2).shape
        weight = torch.stack([
            conv2d_weight(  # type: ignore[no-untyped-call]
                x, shape, y, stride, padding, dilation, module.groups).flatten()
            for x, y in zip(torch.split(a, 1), torch.split(b, 1), strict=True)
        ])  # fmt: skip
        return [
            (module.weight, _explicit(slots.total(weight))),
            (module.bias, _bias(b.flatten(2).sum(2), slots)),
        ]
    if single_point:
        patches = a[:, :, :: stride[0], :: stride[1]].flatten(2)
    else:
        patches = functional.unfold(a, kernel, dilation, padding, stride)
    patches = patches.view(len(a), module.groups, patches.shape[1] // module.groups, -1)
    back = b.reshape(len(a), module.groups, outputs, -1)
    return _linear(module, patches.mT, back.mT, slots)


def _pair(size: int | tuple[int, ...] | str, fill: int) -> tuple[int, int]:
    """Of a convolution over one or two dimensions, as over two."""
    given = (size,) if isinstance(size, int) else tuple(int(each) for each in size)
    return (fill, given[0]) if len(given) == 1 else (given[0], given[1])


def _normalisation(
    module: nn.GroupNorm | nn.LayerNorm, a: torch.Tensor, b: torch.Tensor, slots: Slots
) -> _Found:
    """The weight's gradient is sum_t b_t x_t with x the normalised input."""
    if isinstance(module, nn.GroupNorm):
        size = (len(a), module.num_channels, a[0, 0].numel(), module.num_groups)
        _, mean, scale = torch.native_group_norm(a.contiguous(), None, None, *size, module.eps)
        each = module.num_channels // module.num_groups
        mean, scale = mean.repeat_interleave(each, 1), scale.repeat_interleave(each, 1)
        a, b = a.flatten(2), b.flatten(2)
        bias = b.sum(2)
        weight = scale * (torch.linalg.vecdot(b, a) - mean * bias)
    else:
        shape = module.normalized_shape
        normal = functional.layer_norm(a, shape, eps=module.eps)
        weight, bias = (values.reshape(len(a), -1, math.prod(shape)).sum(1) for values in (b * normal, b))
    return [(module.weight, _explicit(slots.total(weight))), (module.bias, _explicit(slots.total(bias)))]
