"""The Gaussian mechanism: the one function through which every noised number of the training passes."""

from __future__ import annotations

import math
from typing import Protocol

import torch

from cipherward.crypto.randomness import KeyStream
from cipherward.errors import UsageError
from cipherward.site_agent.training.chacha import ChaChaNoise

GRID_BITS = 16
_SMALLEST = 2.0**-900
_PIECE = 1 << 16


class Noise(Protocol):
    """A secret source of standard normal deviates on one device."""

    def gaussian(self, count: int) -> torch.Tensor:
        """``count`` of them: (count,), float64, each used once."""


class _CpuNoise:
    """AES-CTR's, as a tensor."""

    def __init__(self, stream: KeyStream) -> None:
        self._stream = stream

    def gaussian(self, count: int) -> torch.Tensor:
        return torch.from_numpy(self._stream.gaussian(count))


def noise_on(device: torch.device, stream: KeyStream) -> Noise:
    """What makes noise fastest where it is needed: AES-CTR on a CPU, ChaCha20 elsewhere, keyed from
    ``stream``."""
    return _CpuNoise(stream) if device.type == "cpu" else ChaChaNoise(stream, device)


def grid(standard_deviation: float) -> float:
    """The power of two that noised numbers are multiples of: in (2**-17, 2**-16] standard deviations.

    Raises UsageError for a standard deviation that is not positive, or too small for the grid to be exact.
    """
    if not (math.isfinite(standard_deviation) and standard_deviation > _SMALLEST):
        raise UsageError(f"noise of standard deviation {standard_deviation} cannot be added")
    return math.ldexp(1.0, math.frexp(standard_deviation)[1] - 1 - GRID_BITS)


def gaussian_mechanism(exact: torch.Tensor, standard_deviation: float, noise: Noise) -> torch.Tensor:
    """``exact`` + N(0, standard_deviation**2) on each coordinate, rounded to multiples of ``grid``.

    ``exact``: (P,), float64, is overwritten and returned. The rounding comes after the noise: it is
    post-processing, changes the variance by less than 2**-35 of it, and costs no privacy.

    What the grid closes: Mironov ("On significance of the least significant bits for differential privacy",
    CCS 2012) told two inputs apart by the low bits of one noised floating-point number, since which numbers x +
    noise can give depends on x; Holohan and Braghin ("Secure random sampling in differential privacy", ESORICS
    2021) did so for Gaussian noise from Box-Muller and others, by finding the uniforms that lead to a number. Here
    every input leads to the same numbers, the multiples of the grid, and each within 10 standard deviations stands
    for more than 2**100 choices of uniforms.

    What it does not close. The chance of a multiple is that of a rounded Gaussian only up to the precision of
    float64 (about 2**-30 of itself up to 8 standard deviations): this is not an exact sampler. The exact
    alternative, the discrete Gaussian of Canonne, Kamath and Steinke (NeurIPS 2020), wants integer sums, that is
    rounding before the noise, and some microseconds a sample. The time that noise takes is not constant (Jin et
    al., "Are we there yet?", S&P 2022), but is seen by the hospital alone. And the sum itself is made before
    the noise: its own rounding errors (Casacuberta et al., "Widespread underestimation of sensitivity", CCS
    2022) are those that ``dpsgd`` states.
    """
    step = grid(standard_deviation)
    # On a CPU in pieces that stay in the cache.
    for part in exact.split(_PIECE) if exact.device.type == "cpu" else [exact]:  # type: ignore[no-untyped-call]
        part += noise.gaussian(len(part)).mul_(standard_deviation)
        # Multiplying by a power of two is exact, and a sum of up to 2**36 standard deviations has all its places.
        part.mul_(1.0 / step).round_().mul_(step)
    return exact
