"""A sum over several hospitals that holds one hospital's gradient alone.

Gradient suppression: Pasquini, Francati, Ateniese, "Eluding secure aggregation in federated learning via model
inconsistency", CCS 2022, section 4. All but the victim are given weights whose first layer is dead (ReLU units that
no input passes): its gradient is zero at all of them, and in the sum it is the victim's. Of one image, each unit's
gradient over its bias's is the image.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from cipherward.errors import UsageError
from cipherward.evaluation.threats.attacks.images import ImageSet, Pixels
from cipherward.evaluation.threats.attacks.vision import (
    Perceptron,
    VisionTask,
    as_gradient,
    plain_step,
    records,
    update,
)
from cipherward.site_agent.training import weights

_DEAD = -1e3


def dead(task: VisionTask, start: NDArray[np.float32]) -> NDArray[np.float32]:
    """``start`` with a first layer that passes nothing."""
    model = weights.build(task)
    if not isinstance(model, Perceptron):
        raise UsageError("only the units of a ReLU can be dead")
    weights.assign(model, start)
    with torch.no_grad():
        model.first.bias.fill_(_DEAD)
    return weights.flatten(model)


def summed_gradient(
    task: VisionTask, images: ImageSet, starts: list[NDArray[np.float32]], patients: NDArray[np.int64]
) -> NDArray[np.float64]:
    """What the round opens: one patient at each hospital, each training from the weights that it was given."""
    constants = plain_step(1)
    updates = [
        update(task, records(images.take(patients[[site]])), start, constants)
        for site, start in enumerate(starts)
    ]
    return as_gradient(np.sum(updates, axis=0, dtype=np.float64), constants)


def read_image(gradient: NDArray[np.float64], hidden: int, side: int) -> Pixels:
    """The image in the first layer's gradient, (side, side) in [0, 1], by the unit that says most."""
    size = side * side
    weight, bias = (
        gradient[: hidden * size].reshape(hidden, size),
        gradient[hidden * size : hidden * (size + 1)],
    )
    unit = int(np.abs(bias).argmax())
    image: Pixels = np.clip(weight[unit] / bias[unit], 0, 1).reshape(side, side).astype(np.float32)
    return image
