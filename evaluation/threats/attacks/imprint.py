"""A crafted first layer that writes training images into its gradient.

Robbing the Fed: Fowl, Geiping, Czaja, Goldblum, Goldstein, ICLR 2022, section 3. Every unit of the layer measures the
same thing, the image's mean brightness, with thresholds at its quantiles; units above the threshold pass the same
gradient. The difference of two neighbours' gradients holds the images between the two thresholds alone: one image in a
bin is read off exactly. MedLeak (Shi et al., arXiv 2407.09972, first called MediLeak) does so to models of medical
images. What both need is that a site trains from weights that an attacker chose.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from cipherward.errors import UsageError
from cipherward.evaluation.threats.attacks.images import Pixels, psnr
from cipherward.evaluation.threats.attacks.vision import Perceptron, VisionTask
from cipherward.site_agent.training import weights

RECOVERED_DB = 20.0
_LEAST = 1e-9


def crafted(task: VisionTask, public: Pixels) -> NDArray[np.float32]:
    """Weights, (P,), of the task's ``Perceptron`` with the imprinting layer in the place of the first.

    ``public``: (n, side, side), images like the victims', whose brightness places the thresholds.
    """
    model = weights.build(task)
    if not isinstance(model, Perceptron):
        raise UsageError("the imprinting layer is a linear one before a ReLU")
    units, size = model.first.weight.shape
    thresholds = np.quantile(public.reshape(len(public), -1).mean(axis=1), np.arange(units) / units)
    thresholds[0] = 0.0  # the first bin begins below every image
    with torch.no_grad():
        model.first.weight.fill_(1 / size)
        model.first.bias.copy_(torch.from_numpy(-thresholds))
        # Each class alike for all units, so that they differ in nothing but who passes the threshold.
        model.last.weight.copy_(
            torch.linspace(-1, 1, len(model.last.weight))[:, None].expand_as(model.last.weight)
        )
        model.last.bias.zero_()
    return weights.flatten(model)


def read_images(gradient: NDArray[np.float64], units: int, side: int) -> Pixels:
    """One image a bin, (units, side, side) in [0, 1], from the summed gradient, (P,), of crafted weights."""
    size = side * side
    weight, bias = gradient[: units * size].reshape(units, size), gradient[units * size : units * (size + 1)]
    # Unit i passes all that is brighter than its threshold: less unit i + 1, what lies in bin i.
    own_weight = weight - np.vstack([weight[1:], np.zeros(size)])
    own_bias = bias - np.append(bias[1:], 0.0)
    # A gradient divided by its bias is the image; where nothing is in the bin, nothing is divided.
    held = np.abs(own_bias) > _LEAST
    found = np.zeros((units, size))
    found[held] = own_weight[held] / own_bias[held, None]
    return np.clip(found, 0, 1).reshape(units, side, side).astype(np.float32)


def recovered(found: Pixels, true: Pixels) -> int:
    """How many of the true images, (n, side, side), some found one shows with a PSNR above 20 dB."""
    return sum(max(psnr(one, image) for one in found) > RECOVERED_DB for image in true)
