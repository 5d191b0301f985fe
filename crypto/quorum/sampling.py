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

import numpy as np
from numpy.typing import NDArray

from cipherward.crypto.labels import Label, digest
from cipherward.crypto.quorum.params import DEGREE, MOST_NOISE, QuorumParams
from cipherward.crypto.randomness import KeyStream

_STRIDE = 1 << 32
_SPARE = 1 << 31
"""Blocks from the candidates of a chunk to the words that replace them, and to the next chunk."""
_SPARE_WORDS = 64


def start_of(chunk: int) -> int:
    """The block of a keystream where the part of chunk ``chunk`` begins."""
    return chunk * _STRIDE


class PublicPolynomials:
    """The polynomials a of one chunk, in order. Not to be shared between threads."""

    def __init__(self, params: QuorumParams, context: bytes, chunk: int) -> None:
        """``context`` names the plan; every contributor has the same one."""
        self._key = digest(Label.PUBLIC_POLYNOMIAL, context)
        self._chunk = chunk
        self._unsigned = params.residue
        self._signed = np.dtype(f"<i{params.residue.itemsize}")
        self._largest = params.residue.type((params.modulus - 1) // 2)
        self._candidates = KeyStream(self._key, start_of(chunk))
        self._spares: KeyStream | None = None
        self._left = np.empty(0, dtype=self._signed)

    def take(
        self, words: NDArray[np.unsignedinteger], scratch: NDArray[np.unsignedinteger]
    ) -> NDArray[np.signedinteger]:
        """Fill ``words``, shape (elements, 2048) of the residue's type, with the next elements' coefficients.

        Returns the same memory as signed integers, centred modulo q. ``scratch`` has the same shape and type.
        """
        self._candidates.fill(words)
        found = words.view(self._signed)
        # The absolute value of the least integer is itself: read as unsigned, it is right again.
        np.abs(found, out=scratch.view(self._signed))
        rejected = np.flatnonzero(scratch > self._largest)
        if rejected.size:
            found.reshape(-1)[rejected] = self._replacements(rejected.size)
        return found

    def _replacements(self, count: int) -> NDArray[np.signedinteger]:
        if self._spares is None:
            self._spares = KeyStream(self._key, start_of(self._chunk) + _SPARE)
        while self._left.size < count:
            more = np.empty(max(_SPARE_WORDS, 2 * count), dtype=self._unsigned)
            self._spares.fill(more)
            signed = more.view(self._signed)
            kept = signed[np.abs(signed).view(self._unsigned) <= self._largest]
            self._left = np.concatenate([self._left, kept])
        taken, self._left = self._left[:count], self._left[count:]
        return taken


def binomial(stream: KeyStream, words: NDArray[np.uint64], out: NDArray[np.int8]) -> None:
    """Centred binomial coefficients of 64 coins into ``out``, int8; ``words`` is scratch of the same shape."""
    stream.fill(words)
    np.bitwise_count(words, out=out.view(np.uint8))
    np.subtract(out, np.int8(MOST_NOISE), out=out)


def binomial_key(stream: KeyStream) -> NDArray[np.int64]:
    """The key's polynomial, int64 of shape (2048,), folded."""
    out = np.empty(DEGREE, dtype=np.int8)
    binomial(stream, np.empty(DEGREE, dtype=np.uint64), out)
    return out.astype(np.int64)
