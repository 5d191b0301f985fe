"""The suite's half at a site: keys, encryption, opening. The coordinator never imports this module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cipherward.crypto.shared_key.keys import SharedSecretKey
from cipherward.crypto.shared_key.params import SharedKeyParams, own_params
from cipherward.crypto.shared_key.wire import PLACE
from cipherward.crypto.suites.base import SecretKey, SuiteParams
from cipherward.crypto.suites.payload import refuse_not_finite
from cipherward.errors import FormatError, LimitError, UsageError
from cipherward.isolated import Content, IsolatedWorker

WORKER = "cipherward.crypto.shared_key.site_worker"
_MEMORY_BYTES = 256 * 2**20
_TIMEOUT = 60.0


def _worker(params: SharedKeyParams, opening: Sequence[tuple[str, Content]] = ()) -> IsolatedWorker:
    return IsolatedWorker(
        WORKER,
        memory_bytes=_MEMORY_BYTES,
        timeout=_TIMEOUT,
        opening=[("set", params.name.encode()), *opening],
    )


class SharedKeySite:
    """See ``cipherward.crypto.suites.base.StudyKeySide``."""

    def generate_key(self, params: SuiteParams) -> SharedSecretKey:
        """A fresh key, made in a worker process. UnavailableError if that failed."""
        own = own_params(params)
        with _worker(own) as worker:
            return SharedSecretKey(own, worker.request("generate", doing="generating the shared key"))

    def load_key(self, params: SuiteParams, content: bytes) -> SharedSecretKey:
        """From ``reveal()``'s bytes; FormatError if they are not a key of that set."""
        return SharedSecretKey(own_params(params), content)

    def cipher(self, key: SecretKey, context: bytes, threads: int | None = None) -> SharedKeyCipher:
        """Encryption and opening under ``key``, in one process of its own. No plan changes anything here."""
        if not isinstance(key, SharedSecretKey):
            raise UsageError(f"the key belongs to the suite {key.params.suite}")
        return SharedKeyCipher(key)


class SharedKeyCipher:
    """See ``cipherward.crypto.suites.base.SiteCipher``. Its process gets the key over its stdin."""

    def __init__(self, key: SharedSecretKey) -> None:
        self._params = key.params
        self._worker = _worker(key.params, [("key", key.reveal())])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Of the process that holds the key; None if there is none now."""
        return self._worker.pid

    def encrypt(self, vector: NDArray[np.floating[Any]]) -> Iterator[bytes]:
        """The chunks of one update, in order; see the protocol for what it takes and raises.

        The vector is checked here, at the call, so that nothing of a bad one is ever sent.
        """
        if vector.ndim != 1 or not np.issubdtype(vector.dtype, np.floating):
            raise UsageError(
                f"an array of shape {vector.shape} and type {vector.dtype} is not an update",
                why="it must be one-dimensional and floating-point",
            )
        refuse_not_finite(vector, "the update")
        self._params.chunk_count(vector.size)
        # Without abs(): that would be a second vector.
        largest = max(float(vector.max()), -float(vector.min()))
        if largest > self._params.bound:
            raise LimitError(
                "the update is not encrypted",
                why=f"a value of magnitude {largest:.6g} exceeds the study's bound {self._params.bound:g}",
                fix="Clip it first: the sum of all sites' updates could overflow",
            )
        return self._chunks(vector)

    def _chunks(self, vector: NDArray[np.floating[Any]]) -> Iterator[bytes]:
        size = self._params.values_per_chunk
        for index in range(self._params.chunk_count(vector.size)):
            values = vector[index * size : (index + 1) * size].astype("<f8")
            chunk = self._worker.request(
                "encrypt", PLACE.pack(index, vector.size), values.data, doing=f"encrypting chunk {index}"
            )
            if len(chunk) != self._params.upload_chunk_bytes(index, vector.size):
                raise FormatError(f"the encrypted chunk {index} has {len(chunk)} bytes")
            yield chunk

    def open_sum(self, chunks: Iterable[bytes], length: int, contributors: int) -> NDArray[np.float64]:
        """The sum's values, shape (length,); see the protocol for what it raises.

        Whether it is the sum that it should be is for ``payload.split`` to check.
        """
        self._params.error_bound(contributors)  # refuses cohorts whose sum could have overflowed
        size, count = self._params.values_per_chunk, self._params.chunk_count(length)
        values = np.empty(length)
        index = 0
        for chunk in chunks:
            if index == count:
                raise FormatError("the sum is refused", why=f"it has more than {count} chunks")
            if len(chunk) != self._params.sum_chunk_bytes(index, length):
                self._params.check_sum_chunk(chunk, index, length)
            opened = self._worker.request(
                "open", PLACE.pack(index, length), chunk, doing=f"opening chunk {index} of the sum"
            )
            values[index * size : (index + 1) * size] = np.frombuffer(opened, dtype="<f8")
            index += 1
        if index != count:
            raise FormatError("the sum is refused", why=f"it has {index} chunks and must have {count}")
        return values

    def close(self) -> None:
        """Stop the process, and with it the copy of the key there."""
        self._worker.close()


SITE_SIDE = SharedKeySite()
