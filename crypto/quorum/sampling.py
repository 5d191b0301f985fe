"""Where polynomials come from: the public ones of a plan, and the secret keys and errors of an attempt.

**Public polynomials (wire format).** Everybody derives the same ones and nobody sends them. Their AES-256 key is
SHA-256 over the label PUBLIC_POLYNOMIAL and the plan's context. Chunk i of an update has the keystream (CTR mode,
big-endian counter of 128 bits) that begins at block i 2^32: its little-endian signed words, as wide as a residue,
are the candidates for the 65,536 coefficients of 32 ring elements in order, each element in folded order
(``ring``). A shorter chunk uses the first of them. A word w is accepted if |w| <= (q - 1)/2, which makes an
accepted word uniform modulo q. Each rejected candidate is replaced, in order, by the next acceptable word of the
keystream that begins at block i 2^32 + 2^31. So any chunk can be derived without the ones before it.

**Keys and errors.** A coefficient is the number of heads of 64 fair coins minus 32: the centred binomial
popcount(32 bits) - popcount(32 bits), of variance 16, for the second popcount may as well count its bits' zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from cipherward.crypto.labels import Label, digest
from cipherward.crypto.quorum.params import DEGREE, MOST_NOISE, QuorumParams
from cipherward.crypto.randomness import KeyStream

_STRIDE = 1 << 32
_SPARE = 1 << 31
"""Blocks from the candidates of a chunk to the words that replace them, and to the next chunk."""


def start_of(chunk: int) -> int:
    """The block of a keystream where the part of chunk ``chunk`` begins."""
    return chunk * _STRIDE


class PublicPolynomials:
    """The polynomials a of one plan. Not to be shared between threads."""

    def __init__(self, params: QuorumParams, context: bytes) -> None:
        """``context`` names the plan; every contributor has the same one."""
        self._stream = KeyStream(digest(Label.PUBLIC_POLYNOMIAL, context))
        self._unsigned = params.residue
        self._signed = np.dtype(f"<i{params.residue.itemsize}")
        self._largest = params.residue.type((params.modulus - 1) // 2)

    def take(
        self,
        chunks: Sequence[int],
        bounds: Sequence[int],
        words: NDArray[np.unsignedinteger],
        scratch: NDArray[np.unsignedinteger],
    ) -> NDArray[np.signedinteger]:
        """The coefficients of some chunks; ``bounds`` are where each one's elements begin, and the end.

        Fills ``words``, of shape (bounds[-1], 2048) and the residue's type, and returns the same memory as signed
        integers, centred modulo q. ``scratch`` has the same shape and type.
        """
        for chunk, (start, end) in zip(chunks, pairwise(bounds), strict=True):
            self._stream.seek(start_of(chunk))
            self._stream.fill(words[start:end])
        found = words.view(self._signed)
        # The absolute value of the least integer is itself: read as unsigned, it is right again.
        np.abs(found, out=scratch.view(self._signed))
        rejected = np.flatnonzero(scratch > self._largest)
        if rejected.size:
            parts = np.split(rejected, np.searchsorted(rejected, [DEGREE * bound for bound in bounds[1:-1]]))
            found.reshape(-1)[rejected] = np.concatenate(
                [self._replacements(chunk, part.size) for chunk, part in zip(chunks, parts, strict=True)]
            )
        return found

    def _replacements(self, chunk: int, count: int) -> NDArray[np.signedinteger]:
        self._stream.seek(start_of(chunk) + _SPARE)
        kept = np.empty(0, dtype=self._signed)
        while kept.size < count:
            more = np.empty(2 * count, dtype=self._unsigned)
            self._stream.fill(more)
            signed = more.view(self._signed)
            kept = np.concatenate([kept, signed[np.abs(signed).view(self._unsigned) <= self._largest]])
        return kept[:count]


def binomial(words: NDArray[np.uint64], out: NDArray[np.int8]) -> None:
    """Centred binomial coefficients into ``out``, int8, from as many random words of 64 coins."""
    np.bitwise_count(words, out=out.view(np.uint8))
    np.subtract(out, np.int8(MOST_NOISE), out=out)


def binomial_key(stream: KeyStream) -> NDArray[np.int64]:
    """The key's polynomial, int64 of shape (2048,), folded."""
    words, out = np.empty(DEGREE, dtype=np.uint64), np.empty(DEGREE, dtype=np.int8)
    stream.fill(words)
    binomial(words, out)
    return out.astype(np.int64)
