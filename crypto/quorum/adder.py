"""Adds up ciphertexts: residues modulo q, with numpy and in this process. Nobody's key is needed for it."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Self

import numpy as np

from cipherward.crypto.quorum.params import QuorumParams
from cipherward.errors import LimitError


class QuorumAdder:
    """See ``cipherward.crypto.suites.base.ChunkAdder``. It has no native parser, so it needs no worker.

    Sums are exact in words twice as wide as a residue (at most 1,000 of them are added), and reduced once. Two
    neighbouring residues are read as one such word w: the words add up modulo 2^(2b), their upper halves
    exactly, and the lower halves' sum is what the one leaves of the other. That takes three passes over half as
    many words, where widening every residue would take twice the memory traffic.
    """

    def __init__(self, params: QuorumParams) -> None:
        self._params = params
        self._wide = np.dtype(f"<u{2 * params.residue.itemsize}")
        self._shift = self._wide.type(8 * params.residue.itemsize)
        self._modulus = self._wide.type(params.modulus)
        words = params.values_per_chunk // 2
        self._pairs, self._upper, self._scratch = (np.empty(words, dtype=self._wide) for _ in range(3))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, chunks: Iterable[bytes], index: int, length: int) -> bytes:
        """The sum of chunk ``index`` over all contributors; see the protocol for what it raises."""
        params = self._params
        words = params.upload_chunk_bytes(index, length) // self._wide.itemsize
        pairs, upper, scratch = self._pairs[:words], self._upper[:words], self._scratch[:words]
        pairs[:] = 0
        upper[:] = 0
        count = 0
        for chunk in chunks:
            count += 1
            params.check_sites(count)
            word = params.residues(chunk, index, length, "upload").view(self._wide)
            np.add(pairs, word, out=pairs)
            np.right_shift(word, self._shift, out=scratch)
            np.add(upper, scratch, out=upper)
        if count == 0:
            raise LimitError(f"there is no sum of chunk {index}", why="it has no contributors")
        np.left_shift(upper, self._shift, out=scratch)
        np.subtract(pairs, scratch, out=pairs)
        for half in (pairs, upper):
            # Cheaper than a remainder: numpy divides by a constant without dividing.
            np.floor_divide(half, self._modulus, out=scratch)
            np.multiply(scratch, self._modulus, out=scratch)
            np.subtract(half, scratch, out=half)
        np.left_shift(upper, self._shift, out=upper)
        np.bitwise_or(pairs, upper, out=pairs)
        return pairs.tobytes()

    def close(self) -> None:
        """Nothing is left to stop."""
