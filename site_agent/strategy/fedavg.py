"""Federated averaging (McMahan et al. 2017) with the manifest's constants as weights.

Bit for bit the same at every site: the opened sum is rounded to float32 first (the opening itself is
deterministic, but rounding keeps what follows clear of its last bits), then only elementwise + - * / in
float64 on the CPU, which IEEE 754 defines exactly, then float32 again. No numpy reductions, whose order
depends on the machine; scalars over U are added by ``math.fsum``, which rounds once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cipherward.errors import FormatError, UsageError, VerificationError
from cipherward.proto.v1.study_pb2 import Manifest

NAME = "fedavg"


def upload_scale(manifest: Manifest, site: str) -> float:
    """What a site multiplies its update by before it encrypts: its weight over the largest, in (0, 1], so
    that a clipped update stays within the bound. Raises UsageError for weights that are not positive."""
    weights = {entry.name: entry.weight for entry in manifest.roster}
    largest = max(weights.values())
    if not all(math.isfinite(weight) and weight > 0 for weight in weights.values()):
        raise UsageError("the manifest's weights are not all positive numbers")
    return weights[site] / largest


def server_step(
    weights: NDArray[np.float32], summed: NDArray[np.float64], manifest: Manifest, contributors: Sequence[str]
) -> NDArray[np.float32]:
    """The model after the round: weights + eta * sum / (sum of the contributors' scales).

    ``weights`` (parameters,) float32, ``summed`` (parameters,) float64. Raises VerificationError if the
    result is not finite, FormatError for another shape, UsageError for a strategy that this version does
    not have.
    """
    if manifest.strategy.name != NAME:
        raise UsageError(
            f"there is no strategy {manifest.strategy.name[:80]!r}", why=f"this version has {NAME}"
        )
    if summed.shape != weights.shape:
        raise FormatError(f"a sum of shape {summed.shape} does not fit a model of shape {weights.shape}")
    total = math.fsum(upload_scale(manifest, site) for site in contributors)
    rounded = summed.astype(np.float32).astype(np.float64)
    mean = rounded / np.float64(total)
    stepped = weights.astype(np.float64) + np.float64(manifest.strategy.server_learning_rate) * mean
    with np.errstate(over="ignore"):
        after = stepped.astype(np.float32)
    if not np.isfinite(after).all():
        raise VerificationError("the model after the round is not finite", why="the sum cannot be right")
    return after
