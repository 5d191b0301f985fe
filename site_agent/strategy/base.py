"""What a strategy is to the daemon: what a site encrypts, and what it does with the opened sum.

The server step is taken by every site by itself, and all must get the same bits: the opened sum is rounded to float32
first (the opening itself is deterministic, but rounding keeps what follows clear of its last bits), then only
elementwise + - * / and sqrt in float64 on the CPU, which IEEE 754 defines exactly, then float32 again. No numpy
reductions, whose order depends on the machine; scalars over U are added by ``math.fsum``, which rounds once.

A study's *state* is one float32 vector, the weights first and then the strategy's moments, if it has any. It is what
is stored, digested, reported and relayed. Before the first round it is the initial weights alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cipherward.errors import FormatError, UsageError, VerificationError
from cipherward.proto.v1.study_pb2 import Manifest

Vector = NDArray[np.float64]

_BLOCK = 2**16
"""Parameters."""


class Strategy(Protocol):
    """One of them; it has no state of its own."""

    def upload_scale(self, manifest: Manifest, site: str) -> float:
        """What ``site`` multiplies its update by before it encrypts, in (0, 1], so that a clipped update stays within
        the bound."""

    def state_size(self, parameters: int) -> int:
        """Values of the state after a round, for a model of so many parameters."""

    def server_step(
        self,
        state: NDArray[np.float32],
        summed: NDArray[np.float64],
        manifest: Manifest,
        contributors: Sequence[str],
    ) -> NDArray[np.float32]:
        """The state after the round, (state_size,), from the one before and the opened sum of the contributors'
        scaled updates, (parameters,).

        Raises VerificationError if the result is not finite, FormatError for another shape.
        """


def weights_of(state: NDArray[np.float32], manifest: Manifest) -> NDArray[np.float32]:
    """The model in a state: (parameters,), what is trained on, evaluated and exported."""
    return state[: manifest.parameter_count]


def site_scale(manifest: Manifest, site: str) -> float:
    """A site's weight over the largest. Raises UsageError for weights that are not positive."""
    weights = {entry.name: entry.weight for entry in manifest.roster}
    largest = max(weights.values())
    if not all(math.isfinite(weight) and weight > 0 for weight in weights.values()):
        raise UsageError("the manifest's weights are not all positive numbers")
    return weights[site] / largest


def total_weight(manifest: Manifest, contributors: Sequence[str]) -> np.float64:
    """What the sum of the contributors' updates is divided by for their mean."""
    return np.float64(math.fsum(site_scale(manifest, site) for site in contributors))


def require_size(state: NDArray[np.float32], *sizes: int) -> None:
    """FormatError for a state of none of these sizes."""
    if state.shape not in {(size,) for size in sizes}:
        raise FormatError(
            f"a model of shape {state.shape} does not fit the study",
            why=f"it has {' or '.join(map(str, sizes))} values",
        )


def stepped(
    step: Callable[..., Sequence[Vector]], state: NDArray[np.float32], summed: Vector, manifest: Manifest
) -> NDArray[np.float32]:
    """The state after an elementwise ``step``, which gets the rounded sum and the state's vectors, float64, and returns
    the new state's: all for a block of parameters, so that what it allocates stays in the cache, whatever the model's
    size.

    FormatError for a sum of another shape, VerificationError if it or the state after it is not finite.
    """
    size = manifest.parameter_count
    if summed.shape != (size,):
        raise FormatError(f"a sum of shape {summed.shape} does not fit a model of {size} parameters")
    vectors = state.reshape(-1, size)
    after: list[NDArray[np.float32]] = []
    with np.errstate(over="ignore"):
        for start in range(0, size, _BLOCK):
            block = slice(start, start + _BLOCK)
            exact = summed[block].astype(np.float32).astype(np.float64)
            _require_finite(exact)
            found = step(exact, *vectors[:, block].astype(np.float64))
            after = after or [np.empty(size, np.float32) for _ in found]
            for vector, values in zip(after, found, strict=True):
                vector[block] = values
                _require_finite(vector[block])
    return np.concatenate(after) if len(after) > 1 else after[0]


def _require_finite(values: NDArray[np.floating[Any]]) -> None:
    if not np.isfinite(values).all():
        raise VerificationError("the model after the round is not finite", why="the sum cannot be right")
