"""Encryption and opening of a few chunks at a time, with all scratch memory allocated once a thread.

Upload: c = a s + e + m, with m = round(D x); the zero chunk has m = 0. Opened sum: C - a S = sum of (m + e).

A batch is up to four chunks: 262,144 values, whose 7 MB of scratch stay in the last cache. With smaller ones, numpy's
cost of a call outweighs what a nearer cache saves, and threads hinder each other taking turns for short calls. An
update of few chunks is cut into more batches, so that every thread finds work. Arrays that are not needed at the
same time share their memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cipherward.crypto.quorum.params import DEGREE, ELEMENTS_PER_CHUNK, QuorumParams
from cipherward.crypto.quorum.ring import Multiplier, reduce
from cipherward.crypto.quorum.sampling import PublicPolynomials, binomial, start_of
from cipherward.crypto.randomness import KeyStream
from cipherward.errors import VerificationError

MOST_CHUNKS = 4
"""Of a batch."""
_LEAST_BATCHES = 8


def batches(count: int) -> list[range]:
    """The indices of ``count`` chunks, in batches of equal size but for the last."""
    size = max(1, min(MOST_CHUNKS, count // _LEAST_BATCHES))
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


class _Chunks:
    """What encryption and opening share: the plan's polynomials times the secret one."""

    def __init__(self, params: QuorumParams, context: bytes, multiplier: Multiplier, length: int) -> None:
        self.rows = len(batches(params.chunk_count(length))[0]) * ELEMENTS_PER_CHUNK
        self.params = params
        self.length = length
        self._polynomials = PublicPolynomials(params, context)
        self._multiplier = multiplier
        self._scratch = multiplier.scratch(self.rows)
        self._public = np.empty((self.rows, DEGREE), dtype=params.residue)
        self._residues = np.empty((self.rows, DEGREE), dtype=params.residue)

    def bounds(self, batch: range) -> list[int]:
        """Where each chunk's ring elements begin in a batch, and where the last one's end."""
        return list(accumulate((self.params.elements_in(index, self.length) for index in batch), initial=0))

    def values(self, vector: NDArray[Any], batch: range) -> NDArray[Any]:
        """The vector's part that the batch holds. Only the zero chunk follows a chunk that is not full."""
        size = self.params.values_per_chunk
        return vector[batch.start * size : batch.stop * size]

    def product(self, batch: range, bounds: Sequence[int]) -> NDArray[np.float64]:
        """a s for the batch, congruent modulo q: float64 of shape (elements, 2048), scratch."""
        rows = bounds[-1]
        a = self._polynomials.take(batch, bounds, self._public[:rows], self._residues[:rows])
        product: NDArray[np.float64] = self._multiplier.multiply(a, self._scratch)
        return product

    def reduce(self, values: NDArray[np.float64]) -> None:
        """In place, to residues within +-q/2."""
        reduce(values, self._scratch.real[: values.shape[0]], self.params.modulus)


class ChunkEncryptor(_Chunks):
    """Encrypts chunks of one update. Each thread needs its own."""

    def __init__(
        self,
        params: QuorumParams,
        context: bytes,
        multiplier: Multiplier,
        errors: bytes,
        vector: NDArray[Any],
    ) -> None:
        """``errors``: key of the errors' stream, in which every chunk has a part of its own."""
        super().__init__(params, context, multiplier, vector.size)
        self._errors = KeyStream(errors)
        self._vector = vector
        # A power of two times a float32 is a float32: no wider type is needed for D x, nor for rounding it.
        kind = np.float32 if vector.dtype == np.float32 else np.float64
        # Until the product is reduced, its quotients' memory is free.
        self._scaled = self._scratch.real.reshape(-1).view(kind)
        self._coins = self._scratch.real.view(np.uint64)
        self._message = np.empty((self.rows, DEGREE), dtype=np.int32)
        self._noise = np.empty((self.rows, DEGREE), dtype=np.int8)

    def encrypt(self, batch: range) -> list[bytes]:
        """The upload chunks with the indices ``batch``."""
        bounds = self.bounds(batch)
        message = self._encoded(self.values(self._vector, batch), bounds[-1])
        np.add(message, self._errors_of(batch, bounds), out=message)
        product = self.product(batch, bounds)
        np.add(product, message, out=product)
        residues = self._reduced(product)
        return [residues[start:end].tobytes() for start, end in pairwise(bounds)]

    def _encoded(self, values: NDArray[Any], rows: int) -> NDArray[np.int32]:
        message, scaled = self._message[:rows], self._scaled[: values.size]
        flat = message.reshape(-1)
        np.multiply(values, self.params.scale, out=scaled, dtype=scaled.dtype, casting="same_kind")
        np.rint(scaled, out=scaled)
        np.copyto(flat[: values.size], scaled, casting="unsafe")
        flat[values.size :] = 0
        return message

    def _errors_of(self, batch: range, bounds: Sequence[int]) -> NDArray[np.int8]:
        coins, noise = self._coins[: bounds[-1]], self._noise[: bounds[-1]]
        for index, (start, end) in zip(batch, pairwise(bounds), strict=True):
            self._errors.seek(start_of(index))
            self._errors.fill(coins[start:end])
        binomial(coins, noise)
        return noise

    def _reduced(self, values: NDArray[np.float64]) -> NDArray[np.unsignedinteger]:
        """Residues below q of float64 integers v below 2^48 in magnitude, which are overwritten.

        (v + 1/2) / q is no nearer than 1/(2q) to an integer, and computed with an error below 2^-35.
        """
        quotients, residues = self._scratch.real[: values.shape[0]], self._residues[: values.shape[0]]
        np.multiply(values, 1 / self.params.modulus, out=quotients)
        np.add(quotients, 0.5 / self.params.modulus, out=quotients)
        np.floor(quotients, out=quotients)
        np.multiply(quotients, self.params.modulus, out=quotients)
        np.subtract(values, quotients, out=values)
        np.copyto(residues, values, casting="unsafe")
        return residues


class ChunkOpener(_Chunks):
    """Opens chunks of one sum. Each thread needs its own."""

    def __init__(
        self,
        params: QuorumParams,
        context: bytes,
        multiplier: Multiplier,
        contributors: int,
        values: NDArray[np.float64],
    ) -> None:
        """``values``: where the opened values go, of the vector's length."""
        super().__init__(params, context, multiplier, values.size)
        self._contributors = contributors
        self._values = values

    def open(self, batch: range, chunks: Sequence[bytes]) -> None:
        """Open the sum's chunks with the indices ``batch``.

        FormatError for bad bytes, VerificationError if the zero chunk is not zero.
        """
        bounds = self.bounds(batch)
        sums = [
            self.params.residues(chunk, index, self.length, "sum").reshape(-1, DEGREE)
            for index, chunk in zip(batch, chunks, strict=True)
        ]
        opened = self.product(batch, bounds)
        for residues, (start, end) in zip(sums, pairwise(bounds), strict=True):
            np.subtract(residues, opened[start:end], out=opened[start:end])
        self.reduce(opened)
        values = self.values(self._values, batch)
        np.multiply(opened.reshape(-1)[: values.size], 1 / self.params.scale, out=values)
        if batch.stop == self.params.chunk_count(self.length):
            self._check_zero(opened[bounds[-2] :])

    def _check_zero(self, opened: NDArray[np.float64]) -> None:
        bound, largest = self.params.zero_bound(self._contributors), max(opened.max(), -opened.min())
        if largest > bound:
            raise VerificationError(
                "the opened sum is refused",
                why=f"a coefficient that encodes zero opened to {largest:.0f}, and noise stays within {bound}",
                fix="The key of the sum or the sum itself is wrong; do not apply it",
            )
