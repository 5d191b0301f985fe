"""Images to attack, and how like two images are.

scikit-learn's digits (UCI Optical Recognition of Handwritten Digits, 1,797 images of 8 x 8) unless a MedMNIST
file is given (Yang et al., Scientific Data 2023): its ``train_images`` and ``train_labels``.
"""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cipherward.errors import EnvironmentProblem, UsageError

Pixels = NDArray[np.float32]
_WINDOW = 7
_K1, _K2 = 0.01, 0.03  # Wang et al. 2004, section III.B


@dataclass(frozen=True, slots=True)
class ImageSet:
    """``pixels``: (n, side, side), float32, in [0, 1]. ``labels``: (n,), int64, below ``classes``."""

    name: str
    pixels: Pixels
    labels: NDArray[np.int64]
    classes: int

    @property
    def side(self) -> int:
        """Pixels a row."""
        return int(self.pixels.shape[1])

    def take(self, chosen: NDArray[np.int64]) -> ImageSet:
        """Some of the images, in that order."""
        return ImageSet(self.name, self.pixels[chosen], self.labels[chosen], self.classes)


def digits() -> ImageSet:
    """scikit-learn's digits, scaled from 0..16 to [0, 1]."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return ImageSet("digits", (found.images / 16).astype(np.float32), found.target.astype(np.int64), 10)


def medmnist(path: Path) -> ImageSet:
    """The training images of a MedMNIST file; colours are averaged.

    Raises EnvironmentProblem for an unreadable file, UsageError for one with other content.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            images, labels = content["train_images"], content["train_labels"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise EnvironmentProblem(f"{path} is not a MedMNIST file", why=str(error)) from error
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or labels.shape != (len(images), 1):
        raise UsageError(f"{path} holds no 2-d images with one label each")
    grey = images if images.ndim == 3 else images.mean(axis=3)
    classes = labels[:, 0].astype(np.int64)
    return ImageSet(path.stem, (grey / 255).astype(np.float32), classes, int(classes.max()) + 1)


def chosen() -> ImageSet:
    """A MedMNIST file if the environment names one (CIPHERWARD_THREATS_IMAGES), else the digits. Raises as
    ``medmnist``."""
    path = os.environ.get("CIPHERWARD_THREATS_IMAGES")
    return medmnist(Path(path)) if path else digits()


def psnr(found: Pixels, true: Pixels) -> float:
    """Peak signal-to-noise ratio in dB, of images in [0, 1]; 100 where they are all but equal."""
    error = float(np.mean((found.astype(np.float64) - true) ** 2))
    return float(-10 * np.log10(max(error, 1e-10)))


def ssim(found: NDArray[Any], true: NDArray[Any]) -> NDArray[np.float64]:
    """Structural similarity (Wang, Bovik, Sheikh, Simoncelli, IEEE TIP 2004) of images in [0, 1].

    Takes (..., side, side) arrays that broadcast; returns (...). Uniform 7 x 7 windows that lie within the
    image, sample variances, as scikit-image computes it.
    """
    a, b = np.broadcast_arrays(np.asarray(found, np.float64), np.asarray(true, np.float64))
    windows = (-2, -1)
    shape = (_WINDOW, _WINDOW)
    one = np.lib.stride_tricks.sliding_window_view(a, shape, axis=windows)
    two = np.lib.stride_tricks.sliding_window_view(b, shape, axis=windows)
    mean_a, mean_b = one.mean(axis=windows), two.mean(axis=windows)
    share = _WINDOW**2 / (_WINDOW**2 - 1)
    var_a = share * ((one**2).mean(axis=windows) - mean_a**2)
    var_b = share * ((two**2).mean(axis=windows) - mean_b**2)
    both = share * ((one * two).mean(axis=windows) - mean_a * mean_b)
    above = (2 * mean_a * mean_b + _K1**2) * (2 * both + _K2**2)
    below = (mean_a**2 + mean_b**2 + _K1**2) * (var_a + var_b + _K2**2)
    similarity: NDArray[np.float64] = (above / below).mean(axis=windows)
    return similarity


@dataclass(frozen=True, slots=True)
class Likeness:
    """Of reconstructed groups of images. ``own``: (groups,), mean SSIM with the group's own images, matched
    as well as can be. ``others``: (groups,), the same with other groups' images: what a random pair gives.
    ``best_psnr``: (groups, size), in dB, of each true image with the reconstruction matched to it."""

    own: NDArray[np.float64]
    others: NDArray[np.float64]
    best_psnr: NDArray[np.float64]

    @property
    def gain(self) -> NDArray[np.float64]:
        """How much liker the reconstruction is to its own images than to others: (groups,)."""
        return self.own - self.others


def class_guess(images: ImageSet, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean SSIM of the best guess that needs no attack: each image's class by the mean of the others of that class.
    ``chosen``: (groups, size). Returns (groups,)."""
    scores = np.empty(chosen.shape)
    for place in np.ndindex(chosen.shape):
        index = chosen[place]
        alike = images.labels == images.labels[index]
        alike[index] = False
        scores[place] = ssim(images.pixels[alike].mean(axis=0), images.pixels[index])
    means: NDArray[np.float64] = scores.mean(axis=1)
    return means


def compare(found: Pixels, true: Pixels) -> Likeness:
    """Reconstructions, (groups, size, side, side), against the true images of the same shape.

    Raises UsageError for fewer than two groups: nothing would be there to compare with.
    """
    from scipy.optimize import linear_sum_assignment

    groups, size = true.shape[:2]
    if found.shape != true.shape or groups < 2:
        raise UsageError(f"images of shape {found.shape} are not compared with {true.shape}")
    scores = np.empty((groups, groups))
    best = np.empty((groups, size))
    for one in range(groups):
        for other in range(groups):
            table = ssim(found[one][:, None], true[other][None])
            rows, columns = linear_sum_assignment(table, maximize=True)
            scores[one, other] = table[rows, columns].mean()
            if one == other:
                for row, column in zip(rows, columns, strict=True):
                    best[one, column] = psnr(found[one, row], true[one, column])
    own = np.diag(scores)
    return Likeness(own, (scores.sum(axis=1) - own) / (groups - 1), best)
