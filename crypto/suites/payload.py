"""What an update vector holds: the model update, the metrics, and a constant 1.0 in the last place.

The constants add up to the number of contributors. So a peer's own upload passed off as "the sum" does not
open to a believable vector. (In the shared-key suite a forger who scales an upload by the cohort's size
still passes: nothing there can tell; the quorum suite can.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cipherward.crypto.suites.base import COARSEST, SuiteParams
from cipherward.errors import FormatError, LimitError, UsageError, VerificationError

CHECK_CONSTANT = 1.0


@dataclass(frozen=True, slots=True)
class Layout:
    """Sizes that all sites share: ``parameters`` values of the update, then ``metrics`` values."""

    parameters: int
    metrics: int

    @property
    def length(self) -> int:
        """Values encrypted: parameters, metrics, check constant."""
        return self.parameters + self.metrics + 1


@dataclass(frozen=True, slots=True)
class OpenedSum:
    """Sums over the contributors, float64: ``update`` of shape (parameters,), ``metrics`` of (metrics,)."""

    update: NDArray[np.float64]
    metrics: NDArray[np.float64]


def upload_sizes(params: SuiteParams, length: int) -> list[int]:
    """Bytes of each chunk of an update of ``length`` values, in order."""
    return [params.upload_chunk_bytes(index, length) for index in range(params.chunk_count(length))]


def refuse_not_finite(vector: NDArray[np.floating[Any]], what: str) -> None:
    """LimitError that counts the NaN and infinite values of ``vector`` and names the first."""
    finite = np.isfinite(vector)
    if not finite.all():
        raise LimitError(
            f"{what} is not encrypted",
            why=f"{vector.size - np.count_nonzero(finite)} of {vector.size} values are not finite, "
            f"the first at position {int(np.argmin(finite))}",
            fix="Check the training data for missing values, and the learning rate",
        )


def build(
    layout: Layout, update: NDArray[np.floating[Any]], metrics: ArrayLike, bound: float
) -> NDArray[np.float32]:
    """The vector to encrypt, float32 of shape (layout.length,), clipped to |x| <= ``bound``.

    ``metrics`` come divided by their agreed caps, so that each lies within the bound: a count of samples
    beyond it would be cut. Raises LimitError for NaN or infinities, UsageError for other sizes or a bound
    below the check constant.
    """
    extra = np.asarray(metrics, dtype=np.float64)
    if update.shape != (layout.parameters,) or extra.shape != (layout.metrics,):
        raise UsageError(
            f"an update of shape {update.shape} with metrics of shape {extra.shape} does not fit",
            why=f"the study has {layout.parameters} parameters and {layout.metrics} metrics",
        )
    if not bound >= CHECK_CONSTANT:
        raise UsageError(f"the bound {bound} is too small", why=f"the check constant is {CHECK_CONSTANT}")
    refuse_not_finite(update, "the update")
    refuse_not_finite(extra, "the list of metrics")
    # The largest float32 within the bound: rounding up would step over it.
    limit = np.float32(bound)
    if float(limit) > bound:
        limit = np.nextafter(limit, np.float32(0))
    vector = np.empty(layout.length, dtype=np.float32)
    np.clip(update, -limit, limit, out=vector[: layout.parameters], casting="same_kind")
    vector[layout.parameters : -1] = np.clip(extra, -limit, limit)
    vector[-1] = CHECK_CONSTANT
    return vector


def split(layout: Layout, vector: NDArray[np.float64], contributors: int, params: SuiteParams) -> OpenedSum:
    """The parts of an opened sum, views into ``vector``.

    Raises FormatError for another length, UsageError if the set's error is too large for the check to mean
    anything, VerificationError if the check constants do not add up to ``contributors``.
    """
    if vector.shape != (layout.length,):
        raise FormatError(
            f"the opened sum has shape {vector.shape}", why=f"the study has {layout.length} values"
        )
    tolerance = params.error_bound(contributors)
    if not tolerance < COARSEST:
        raise UsageError(
            f"the parameter set {params.name} is too coarse for {contributors} contributors",
            why=f"its error bound of {tolerance:.3g} does not tell two numbers of contributors apart",
        )
    constant = float(vector[-1])
    if not abs(constant - contributors * CHECK_CONSTANT) <= tolerance:
        raise VerificationError(
            "the opened sum is refused",
            why=f"its check constant is {constant:.6g} and {contributors} contributors make {contributors}",
            fix="This is not the sum of the updates that the close record names; do not apply it",
        )
    return OpenedSum(vector[: layout.parameters], vector[layout.parameters : -1])
