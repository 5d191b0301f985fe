"""Encryption of updates and opening of sums, as streams of chunks in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import islice
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cipherward.crypto.quorum.chunks import ChunkEncryptor, ChunkOpener, batches
from cipherward.crypto.quorum.key import QuorumKey, SumKey
from cipherward.crypto.quorum.parallel import default_threads, in_order
from cipherward.crypto.quorum.params import QuorumParams
from cipherward.crypto.quorum.ring import Multiplier
from cipherward.crypto.suites.payload import refuse_not_finite
from cipherward.errors import FormatError, LimitError, UsageError


def check_vector(vector: NDArray[np.floating[Any]], params: QuorumParams) -> None:
    """UsageError for what is not an update; LimitError for values that are not finite or exceed B.

    Makes no copy: a NaN shows as the largest value.
    """
    if vector.ndim != 1 or not np.issubdtype(vector.dtype, np.floating):
        raise UsageError(
            f"an array of shape {vector.shape} and type {vector.dtype} is not an update",
            why="it must be one-dimensional and floating-point",
        )
    params.chunk_count(vector.size)
    largest = max(float(vector.max()), -float(vector.min()))
    if not np.isfinite(largest):
        refuse_not_finite(vector, "the update")
    if largest > params.bound:
        raise LimitError(
            "the update is not encrypted",
            why=f"a value of magnitude {largest:.6g} exceeds the study's bound {params.bound:g}",
            fix="Clip it first: the sum of all sites' updates could overflow",
        )


class QuorumCipher:
    """See ``cipherward.crypto.suites.base.SiteCipher``. It works in this process: nothing native parses here.

    The key of an attempt encrypts, the key of a sum opens. What goes on after ``encrypt`` does not need the
    key, so that the caller may drop it.
    """

    def __init__(self, key: QuorumKey | SumKey, context: bytes, threads: int | None = None) -> None:
        """``threads``: to use at most; by default one a processor, up to four."""
        if threads is not None and threads < 1:
            raise UsageError(f"{threads} threads cannot do anything")
        self._key: QuorumKey | SumKey | None = key
        self._params = key.params
        self._context = context
        self._threads = default_threads() if threads is None else threads

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def encrypt(self, vector: NDArray[np.floating[Any]]) -> Iterator[bytes]:
        """The chunks of one update, in order; see the protocol for what it takes and raises.

        The vector is checked here, at the call, and the key is spent with it: UsageError at a second call,
        whatever becomes of the first one's chunks. The vector must not change until the last chunk is made.
        """
        if not isinstance(self._key, QuorumKey):
            raise UsageError("this key opens a sum and encrypts nothing")
        check_vector(vector, self._params)
        secret, errors = self._key.spend(self._context)
        return self._encrypted(Multiplier(secret, self._params.modulus), errors, vector)

    def _encrypted(self, multiplier: Multiplier, errors: bytes, vector: NDArray[Any]) -> Iterator[bytes]:
        jobs = batches(self._params.chunk_count(vector.size))
        workers = [
            ChunkEncryptor(self._params, self._context, multiplier, errors, vector)
            for _ in range(self._workers(vector.size))
        ]
        with closing(in_order(ChunkEncryptor.encrypt, jobs, workers)) as encrypted:
            for chunks in encrypted:
                yield from chunks

    def open_sum(self, chunks: Iterable[bytes], length: int, contributors: int) -> NDArray[np.float64]:
        """The sum's values, shape (length,); see the protocol for what it raises.

        VerificationError if the zero chunk does not open to zero: the key is not that of this sum.
        """
        if not isinstance(self._key, SumKey):
            raise UsageError("the key of one attempt opens nothing", why="only the sum of keys opens a sum")
        if contributors != self._key.contributors:
            raise UsageError(
                f"the key is the sum of {self._key.contributors} keys", why=f"it is to open {contributors}"
            )
        count = self._params.chunk_count(length)
        values = np.empty(length)
        multiplier = Multiplier(self._key.polynomial(), self._params.modulus)
        workers = [
            ChunkOpener(self._params, self._context, multiplier, contributors, values)
            for _ in range(self._workers(length))
        ]
        with closing(in_order(_open, _in_batches(chunks, count), workers)) as opened:
            for _ in opened:
                pass
        return values

    def _workers(self, length: int) -> int:
        """As many as find work."""
        return min(self._threads, len(batches(self._params.chunk_count(length))))

    def close(self) -> None:
        """Forget the key."""
        self._key = None


def _open(worker: ChunkOpener, job: tuple[range, list[bytes]]) -> None:
    worker.open(*job)


def _in_batches(chunks: Iterable[bytes], count: int) -> Iterator[tuple[range, list[bytes]]]:
    left = iter(chunks)
    for batch in batches(count):
        found = list(islice(left, len(batch)))
        if len(found) < len(batch):
            raise FormatError(
                "the sum is refused", why=f"it has {batch.start + len(found)} chunks and must have {count}"
            )
        yield batch, found
    if next(left, None) is not None:
        raise FormatError("the sum is refused", why=f"it has more than {count} chunks")
