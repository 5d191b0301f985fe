"""What was uploaded is hashed and checked by a process of its own, before it is written. In the coordinator's own all
calls would wait for it: in the event loop because it takes up to 2 ms a message, in a thread because the interpreter's
lock changes hands around every hash."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import structlog

from cipherward.coordinator.api.admission import FAST_PLACES, SLOW_PLACES
from cipherward.coordinator.api.inspection_worker import MEMORY, RUN
from cipherward.coordinator.api.policy import UPLOAD_MESSAGE
from cipherward.coordinator.blobs.buffers import Buffer, Buffers
from cipherward.coordinator.blobs.writer import SEGMENT_BYTES
from cipherward.crypto.suites.base import SuiteParams
from cipherward.crypto.suites.registry import package
from cipherward.errors import UnavailableError
from cipherward.ids import DIGEST_BYTES
from cipherward.isolated import IsolatedWorker

log = structlog.get_logger()
WORKER = "cipherward.coordinator.api.inspection_worker"
_BUFFERS_PER_UPLOAD = 4
"""Of chunks and of shares, one that is filled and one that is stored."""
_MEMORY_BYTES = 128 * 2**20
_TIMEOUT = 30.0
_REPLY_BYTES = 2**20
_THREADS = 4


def named(params: SuiteParams, sites: int) -> bytes:
    """The parameters of a roster of so many, as the other process finds them again."""
    return json.dumps([package(params.suite), params.name, params.bound, sites]).encode()


class Inspection:
    """Its callers are threads of its own pool: whatever becomes of the process, nobody else waits for it. It is started
    by the first request."""

    def __init__(self) -> None:
        """Raises EnvironmentProblem."""
        uploads = FAST_PLACES + SLOW_PLACES
        self.buffers = Buffers(
            SEGMENT_BYTES + UPLOAD_MESSAGE, _BUFFERS_PER_UPLOAD * uploads, kept=2 * FAST_PLACES
        )
        self.threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="uploads")
        """Where uploads are checked and written."""
        self._worker = IsolatedWorker(
            WORKER,
            memory_bytes=self.buffers.bytes + _MEMORY_BYTES,
            timeout=_TIMEOUT,
            opening=[("memory", MEMORY.pack(self.buffers.fd, self.buffers.bytes))],
            reply_limit=_REPLY_BYTES,
            shared=(self.buffers.fd,),
        )

    @property
    def pid(self) -> int | None:
        """Of the process; None if there is none now."""
        return self._worker.pid

    def chunks(
        self,
        buffer: Buffer,
        first: int,
        sizes: Sequence[int],
        claimed: Sequence[bytes],
        params: bytes,
        length: int,
    ) -> None:
        """Chunks ``first`` ... of an update, which fill the buffer: each has the digest ``claimed`` and the structure
        that ``params`` (see ``named``) give it.

        Raises FormatError for the first that is wrong, UnavailableError if the process failed.
        """
        head = RUN.pack(buffer.offset, first, length, len(sizes), len(params))
        body = b"".join((head, params, struct.pack(f">{len(sizes)}I", *sizes), *claimed))
        self._request("chunks", body, f"checking chunk {first} and those behind it")

    def leaves(self, buffer: Buffer, sizes: Sequence[int]) -> list[bytes]:
        """Leaf hashes of what fills the buffer; UnavailableError if the process failed."""
        head = RUN.pack(buffer.offset, 0, 0, len(sizes), 0)
        found = self._request("leaves", head + struct.pack(f">{len(sizes)}I", *sizes), "hashing shares")
        if len(found) != DIGEST_BYTES * len(sizes):
            raise UnavailableError(
                "a worker process failed while hashing shares", why="its reply is incomplete"
            )
        return [found[at : at + DIGEST_BYTES] for at in range(0, len(found), DIGEST_BYTES)]

    def probe(self) -> None:
        """Start the process if there is none; UnavailableError unless it answers."""
        self._request("leaves", RUN.pack(0, 0, 0, 0, 0), "answering whether it works")

    def _request(self, operation: str, body: bytes, doing: str) -> bytes:
        try:
            return self._worker.request(operation, body, doing=doing)
        except UnavailableError as error:
            log.error("upload checker lost", reason=str(error))
            raise

    def close(self) -> None:
        """Stop the process, and wait for the threads."""
        self._worker.close()
        self.threads.shutdown(cancel_futures=True)
        self.buffers.close()
