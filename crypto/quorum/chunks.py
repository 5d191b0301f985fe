"""Encryption and opening of one chunk at a time, in blocks of ring elements that stay in a processor's cache.

Upload: c = a s + e + m, with m = round(D x); the zero chunk has m = 0. Opened sum: C - a S = sum of (m + e).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cipherward.crypto.quorum.params import DEGREE, QuorumParams
from cipherward.crypto.quorum.ring import Multiplier, reduce
from cipherward.crypto.quorum.sampling import PublicPolynomials, binomial, start_of
from cipherward.crypto.randomness import KeyStream
from cipherward.errors import VerificationError

BLOCK = 8
"""Ring elements worked on at a time."""


class _Blocks:
    """What encryption and opening share: the plan's polynomials times the secret one, block by block."""

    def __init__(self, params: QuorumParams, context: bytes, multiplier: Multiplier) -> None:
        self.params = params
        self._context = context
        self._multiplier = multiplier
        self._scratch = multiplier.scratch(BLOCK)
        self._public = np.empty((BLOCK, DEGREE), dtype=params.residue)
        self._residues = np.empty((BLOCK, DEGREE), dtype=params.residue)

    def polynomials(self, index: int) -> PublicPolynomials:
        return PublicPolynomials(self.params, self._context, index)

    def product(self, polynomials: PublicPolynomials, rows: int) -> NDArray[np.float64]:
        a = polynomials.take(self._public[:rows], self._residues[:rows])
        product: NDArray[np.float64] = self._multiplier.multiply(a, self._scratch)
        return product

    def reduce(self, values: NDArray[np.float64]) -> None:
        reduce(values, self._scratch.real[: values.shape[0]], self.params.modulus)


class ChunkEncryptor(_Blocks):
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
            BLOCK * DEGREE, dtype=np.float32 if vector.dtype == np.float32 else np.float64
        )
        self._message = np.empty((BLOCK, DEGREE), dtype=np.int32)
        self._coins = np.empty((BLOCK, DEGREE), dtype=np.uint64)
        self._noise = np.empty((BLOCK, DEGREE), dtype=np.int8)
        self._signed = np.empty((BLOCK, DEGREE), dtype=f"<i{params.residue.itemsize}")

    def encrypt(self, index: int) -> bytes:
        """The upload chunk ``index``."""
        params, length = self.params, self._vector.size
        elements = params.elements_in(index, length)
        first = index * params.values_per_chunk
        values = self._vector[first : first + params.values_in(index, length)]
        out = np.empty((elements, DEGREE), dtype=params.residue)
        polynomials, errors = self.polynomials(index), KeyStream(self._errors, start_of(index))
        for start in range(0, elements, BLOCK):
            rows = min(BLOCK, elements - start)
            message, noise = self._message[:rows], self._noise[:rows]
            self._encode(values[start * DEGREE : (start + rows) * DEGREE], message)
            binomial(errors, self._coins[:rows], noise)
            np.add(message, noise, out=message)
            product = self.product(polynomials, rows)
            np.add(product, message, out=product)
            self.reduce(product)
            self._pack(product, out[start : start + rows])
        return out.tobytes()

    def _encode(self, values: NDArray[Any], message: NDArray[np.int32]) -> None:
        flat, scaled = message.reshape(-1), self._scaled[: values.size]
        np.multiply(values, self.params.scale, out=scaled, dtype=scaled.dtype, casting="same_kind")
        np.rint(scaled, out=scaled)
        np.copyto(flat[: values.size], scaled, casting="unsafe")
        flat[values.size :] = 0

    def _pack(self, centred: NDArray[np.float64], out: NDArray[np.unsignedinteger]) -> None:
        """Residues within +-q/2 as residues below q: the sign bit, spread, selects what to add."""
        rows = centred.shape[0]
        signed, shifted = self._signed[:rows], self._residues[:rows]
        np.copyto(signed, centred, casting="unsafe")
        np.right_shift(signed, 8 * signed.itemsize - 1, out=shifted.view(signed.dtype))
        np.bitwise_and(shifted, shifted.dtype.type(self.params.modulus), out=shifted)
        np.add(signed.view(shifted.dtype), shifted, out=out)


class ChunkOpener(_Blocks):
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
        polynomials = self.polynomials(index)
        for start in range(0, residues.shape[0], BLOCK):
            rows = min(BLOCK, residues.shape[0] - start)
            opened = self.product(polynomials, rows)
            np.subtract(residues[start : start + rows], opened, out=opened)
            self.reduce(opened)
            if values.size:
                part = values[start * DEGREE : (start + rows) * DEGREE]
                np.multiply(opened.reshape(-1)[: part.size], 1 / params.scale, out=part)
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
