"""Gradient inversion: training images from the gradients that they made.

DLG: Zhu, Liu, Han, "Deep Leakage from Gradients", NeurIPS 2019 (squared distance of gradients, L-BFGS).
Inverting Gradients: Geiping, Bauermeister, Droege, Moeller, NeurIPS 2020 (cosine distance, total variation, Adam
with decreasing steps within the range of pixels). Labels are given to the attacker, as in the latter: for one image
they show in the last layer's bias (iDLG, Zhao et al. 2020).

Many groups of images are attacked at once; each group's problem is independent of the others'.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch.func import functional_call, grad, vmap

from cipherward.evaluation.threats.attacks.images import Pixels
from cipherward.evaluation.threats.attacks.vision import as_pixels
from cipherward.site_agent.tasks.base import Task
from cipherward.site_agent.training import weights

_STEP = 0.1
_DECAY_AT, _DECAY = (1 / 2, 3 / 4, 7 / 8), 0.3

Gradients = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def gradients_of(task: Task, start: NDArray[np.float32]) -> Gradients:
    """The function (pixels (g, size, 1, side, side), labels (g, size)) -> summed gradients (g, P), float64."""
    torch.set_num_threads(1)
    model = weights.build(task)
    weights.assign(model, start)
    parameters = {name: value.detach().double() for name, value in model.named_parameters()}

    def loss(values: dict[str, torch.Tensor], pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return task.loss(functional_call(model, values, (pixels,)), labels).sum()

    each = vmap(grad(loss), in_dims=(None, 0, 0))

    def gradients(pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        parts: dict[str, torch.Tensor] = each(parameters, pixels, labels)
        return torch.cat([part.flatten(1) for part in parts.values()], dim=1)

    return gradients


def geiping(
    gradients: Gradients,
    seen: NDArray[np.float64],
    labels: NDArray[np.int64],
    side: int,
    *,
    seed: int,
    steps: int = 400,
    variation: float = 1e-6,
) -> Pixels:
    """Images whose gradients point where the ``seen`` ones, (g, P), do. Returns (g, size, side, side).

    ``labels``: (g, size). ``variation``: weight of the total variation.
    """
    target, classes = torch.from_numpy(seen), torch.from_numpy(labels)
    guess = _random(labels.shape, side, seed)
    optimizer = torch.optim.Adam([guess], lr=_STEP)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [int(steps * at) for at in _DECAY_AT], _DECAY)
    for _ in range(steps):
        optimizer.zero_grad()
        likeness = torch.cosine_similarity(gradients(guess, classes), target, dim=1)
        (1 - likeness + variation * _total_variation(guess)).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            guess.clamp_(0, 1)
    return as_pixels(guess)


def dlg(
    gradients: Gradients,
    seen: NDArray[np.float64],
    labels: NDArray[np.int64],
    side: int,
    *,
    seed: int,
    steps: int = 60,
) -> Pixels:
    """Images whose gradients equal the ``seen`` ones, (g, P). Returns (g, size, side, side) in [0, 1]."""
    found = [
        _dlg_one(
            gradients, torch.from_numpy(seen[[group]]), torch.from_numpy(labels[[group]]), side, seed, steps
        )
        for group in range(len(seen))
    ]
    return np.concatenate(found)


def _dlg_one(
    gradients: Gradients, target: torch.Tensor, classes: torch.Tensor, side: int, seed: int, steps: int
) -> Pixels:
    guess = _random(tuple(classes.shape), side, seed)
    optimizer = torch.optim.LBFGS([guess], max_iter=steps, line_search_fn="strong_wolfe")
    # Ciphertext read as numbers is large: one scale for all, so that the line search begins well.
    scale = target.square().sum()

    def distance() -> torch.Tensor:
        optimizer.zero_grad()
        value = (gradients(guess, classes) - target).square().sum() / scale
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(distance)  # type: ignore[no-untyped-call]
    return as_pixels(guess.nan_to_num().clamp(0, 1))


def _random(shape: tuple[int, ...], side: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, 1, side, side, generator=generator, dtype=torch.float64).requires_grad_()


def _total_variation(pixels: torch.Tensor) -> torch.Tensor:
    across = (pixels[..., 1:] - pixels[..., :-1]).abs().mean((1, 2, 3, 4))
    down = (pixels[..., 1:, :] - pixels[..., :-1, :]).abs().mean((1, 2, 3, 4))
    return across + down
