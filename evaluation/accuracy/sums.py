"""What the sites open: the sum of their vectors as the quorum suite gives it, with its encryption simulated or real.

The scheme (``crypto.quorum.chunks``) is exact but for two things: a site rounds D x to integers, and each
coefficient gets a centred binomial error e. The opened sum is (sum of round(D x_i) + e_i) / D, as long as it does not
overflow, which the parameters exclude. So the simulation, which draws the same e from the same kind of stream, has
exactly the distribution of the real thing, and costs no ring arithmetic.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cipherward.crypto.manifest_rules import effective_threshold
from cipherward.crypto.quorum.cipher import check_vector
from cipherward.crypto.quorum.params import QuorumParams
from cipherward.crypto.quorum.sampling import binomial
from cipherward.crypto.quorum.site import SITE_SIDE
from cipherward.crypto.randomness import KeyStream
from cipherward.crypto.suites.registry import suite

Vector = NDArray[np.float32]


class Encryption(StrEnum):
    """Whether sums are encrypted."""

    SIMULATED = "simulated"
    """Rounding and errors of the suite without its ring."""
    REAL = "real"
    """Every vector is encrypted under a fresh key, the key dealt, ciphertexts added, the sum opened."""


class Sums(Protocol):
    """Adds up one vector of each site."""

    def open(self, vectors: Sequence[Vector]) -> NDArray[np.float64]:
        """The opened sum, of a vector's shape. Raises LimitError for vectors beyond the suite's bound."""


class SimulatedSums:
    """See the module."""

    def __init__(self, params: QuorumParams) -> None:
        self._params = params
        self._stream = KeyStream()

    def open(self, vectors: Sequence[Vector]) -> NDArray[np.float64]:
        """The sum with rounding and errors."""
        self._params.check_contributors(len(vectors))
        total = np.zeros(len(vectors[0]), dtype=np.int64)
        coins, noise = np.empty(len(total), dtype=np.uint64), np.empty(len(total), dtype=np.int8)
        for vector in vectors:
            check_vector(vector, self._params)
            self._stream.fill(coins)
            binomial(coins, noise)
            total += np.rint(vector * np.float32(self._params.scale)).astype(np.int64) + noise
        opened: NDArray[np.float64] = total / self._params.scale
        return opened


class RealSums:
    """The suite's own code, all sites in this process, t of them answering."""

    def __init__(self, params: QuorumParams, threshold: int) -> None:
        self._params, self._threshold = params, threshold

    def open(self, vectors: Sequence[Vector]) -> NDArray[np.float64]:
        """Encrypt, deal, add, answer, combine, open."""
        params, length, count = self._params, len(vectors[0]), len(vectors)
        context = os.urandom(32)
        threshold = effective_threshold(self._threshold, count)
        uploads, dealt = [], []
        for vector in vectors:
            key = SITE_SIDE.generate_key(params, vector.tobytes())
            dealt.append(key.deal(threshold, count))
            with SITE_SIDE.cipher(key, context, 1) as cipher:
                uploads.append(list(cipher.encrypt(vector)))
        with suite(params.suite).chunk_adder(params) as adder:
            total = [
                adder.add(chunks, index, length) for index, chunks in enumerate(zip(*uploads, strict=True))
            ]
        answers = {
            member + 1: SITE_SIDE.add_shares(params, [shares[member] for shares in dealt])
            for member in range(threshold)
        }
        combined = next(SITE_SIDE.combine(params, answers, threshold, count))
        with SITE_SIDE.cipher(combined.key, context, 1) as cipher:
            return cipher.open_sum(total, length, count)


def make_sums(encryption: Encryption, params: QuorumParams, threshold: int) -> Sums:
    """As asked for."""
    return SimulatedSums(params) if encryption is Encryption.SIMULATED else RealSums(params, threshold)
