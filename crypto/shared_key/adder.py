"""Adds up ciphertexts in a process of its own. This half runs in the coordinator and loads no native code."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Self

from cipherward.crypto.shared_key.params import SharedKeyParams
from cipherward.crypto.shared_key.wire import PLACE
from cipherward.errors import LimitError
from cipherward.isolated import IsolatedWorker

WORKER = "cipherward.crypto.shared_key.add_worker"
# Measured need: under 20 MiB, whatever the number of contributors.
_MEMORY_BYTES = 256 * 2**20
_TIMEOUT = 30.0


class SharedKeyAdder:
    """See ``cipherward.crypto.suites.base.ChunkAdder``."""

    def __init__(self, params: SharedKeyParams) -> None:
        self._params = params
        self._worker = IsolatedWorker(
            WORKER,
            memory_bytes=_MEMORY_BYTES,
            timeout=_TIMEOUT,
            opening=[("set", params.name.encode())],
            reply_limit=params.sum_chunk_bytes(0, params.values_per_chunk),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Of the worker process; None if there is none now."""
        return self._worker.pid

    def add(self, chunks: Iterable[bytes], index: int, length: int) -> bytes:
        """The sum of chunk ``index`` over all contributors; see the protocol for what it raises."""
        size = self._params.upload_chunk_bytes(index, length)
        self._worker.request("begin", PLACE.pack(index, length), doing=f"starting on chunk {index}")
        count = 0
        for chunk in chunks:
            count += 1
            self._params.check_sites(count)
            # The whole structure is checked over there. A size that cannot be right need not travel.
            if len(chunk) > size:
                self._params.check_upload_chunk(chunk, index, length)
            doing = f"adding chunk {index} of contributor {count}"
            self._worker.request("add", chunk, doing=doing, start=False)
        if count == 0:
            raise LimitError(f"there is no sum of chunk {index}", why="it has no contributors")
        total = self._worker.request("finish", doing=f"writing the sum of chunk {index}", start=False)
        self._params.check_sum_chunk(total, index, length)
        return total

    def close(self) -> None:
        """Stop the worker process."""
        self._worker.close()
