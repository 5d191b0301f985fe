"""Encryption and opening of one chunk at a time: 65,536 values, whose 3 MB of scratch stay in the cache.

(Smaller blocks were slower: numpy's cost of a call outweighs what a nearer cache saves.)
Upload: c = a s + e + m, with m = round(D x); the zero chunk has m = 0. Opened sum: C - a S = sum of (m + e).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cipherward.crypto.quorum.params import DEGREE, ELEMENTS_PER_CHUNK, QuorumParams
from cipherward.crypto.quorum.ring import Multiplier, reduce
from cipherward.crypto.quorum.sampling import PublicPolynomials, binomial, start_of
from cipherward.crypto.randomness import KeyStream
from cipherward.errors import VerificationError


class _Chunks:
    """What encryption and opening share: the plan's polynomials times the secret one."""

    def __init__(self, params: QuorumParams, context: bytes, multiplier: Multiplier) -> None:
        self.params = params
        self._context = context
        self._multiplier = multiplier
        self._scratch = multiplier.scratch(ELEMENTS_PER_CHUNK)
        self._public = np.empty((ELEMENTS_PER_CHUNK, DEGREE), dtype=params.residue)
        self._residues = np.empty((ELEMENTS_PER_CHUNK, DEGREE), dtype=params.residue)

    def product(self, index: int, elements: int) -> NDArray[np.float64]:
        """a s for the chunk, congruent modulo q: float64 of shape (elements, 2048), scratch."""
        polynomials = PublicPolynomials(self.params, self._context, index)
        a = polynomials.take(self._public[:elements], self._residues[:elements])
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
        super().__init__(params, context, multiplier)
        self._errors = errors
        self._vector = vector
        # A power of two times a float32 is a float32: no wider type is needed for D x, nor for rounding it.
        self._scaled = np.empty(
            ELEMENTS_PER_CHUNK * DEGREE, dtype=np.float32 if vector.dtype == np.float32 else np.float64
        )
        self._message = np.empty((ELEMENTS_PER_CHUNK, DEGREE), dtype=np.int32)
        self._coins = np.empty((ELEMENTS_PER_CHUNK, DEGREE), dtype=np.uint64)
        self._noise = np.empty((ELEMENTS_PER_CHUNK, DEGREE), dtype=np.int8)
        self._signed = np.empty((ELEMENTS_PER_CHUNK, DEGREE), dtype=f"<i{params.residue.itemsize}")

    def encrypt(self, index: int) -> bytes:
        """The upload chunk ``index``."""
        params, length = self.params, self._vector.size
        elements = params.elements_in(index, length)
        first = index * params.values_per_chunk
        values = self._vector[first : first + params.values_in(index, length)]
        message, noise = self._message[:elements], self._noise[:elements]
        self._encode(values, message)
        binomial(KeyStream(self._errors, start_of(index)), self._coins[:elements], noise)
        np.add(message, noise, out=message)
        product = self.product(index, elements)
        np.add(product, message, out=product)
        self.reduce(product)
        return self._packed(product)

    def _encode(self, values: NDArray[Any], message: NDArray[np.int32]) -> None:
        flat, scaled = message.reshape(-1), self._scaled[: values.size]
        np.multiply(values, self.params.scale, out=scaled, dtype=scaled.dtype, casting="same_kind")
        np.rint(scaled, out=scaled)
        np.copyto(flat[: values.size], scaled, casting="unsafe")
        flat[values.size :] = 0

    def _packed(self, centred: NDArray[np.float64]) -> bytes:
        """Residues within +-q/2 as residues below q: the sign bit, spread, selects what to add."""
        rows = centred.shape[0]
        signed, residues = self._signed[:rows], self._residues[:rows]
        np.copyto(signed, centred, casting="unsafe")
        np.right_shift(signed, 8 * signed.itemsize - 1, out=residues.view(signed.dtype))
        np.bitwise_and(residues, residues.dtype.type(self.params.modulus), out=residues)
        np.add(residues, signed.view(residues.dtype), out=residues)
        return residues.tobytes()


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
        super().__init__(params, context, multiplier)
        self._contributors = contributors
        self._values = values

    def open(self, index: int, chunk: bytes) -> None:
        """Open sum chunk ``index``: FormatError for bad bytes, VerificationError if the zero chunk is not zero."""
        params, length = self.params, self._values.size
        residues = params.residues(chunk, index, length, "sum").reshape(-1, DEGREE)
        first = index * params.values_per_chunk
        values = self._values[first : first + params.values_in(index, length)]
        opened = self.product(index, residues.shape[0])
        np.subtract(residues, opened, out=opened)
        self.reduce(opened)
        if values.size:
            np.multiply(opened.reshape(-1)[: values.size], 1 / params.scale, out=values)
        else:
            self._check_zero(opened)

    def _check_zero(self, opened: NDArray[np.float64]) -> None:
        bound, largest = self.params.zero_bound(self._contributors), max(opened.max(), -opened.min())
        if largest > bound:
            raise VerificationError(
                "the opened sum is refused",
                why=f"a coefficient that encodes zero opened to {largest:.0f}, and noise stays within {bound}",
                fix="The key of the sum or the sum itself is wrong; do not apply it",
            )
