"""The yardsticks of ingest: a gRPC server over mutual TLS that drops what it is sent, and a disk that is sent the
same bytes without any server.

``python -m cipherward.evaluation.bench.coordinator.bare FOLDER`` serves with the coordinator's certificate and its
gRPC options, and prints its address. It runs as the coordinator does, in a session of its own (Linux shares the
processors out between sessions) with the same settings of the C library, and reads every message of all sites at once,
in whatever order they come. The sites' processes, their messages and their TLS are the same for both.
"""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc

from cipherward.coordinator.api.service import OPTIONS
from cipherward.coordinator.blobs.writer import SEGMENT_BYTES
from cipherward.coordinator.daemon.service import limit_arenas
from cipherward.crypto.pki.store import load_member
from cipherward.errors import UnavailableError
from cipherward.ids import Role
from cipherward.proto.v1.coordinator_pb2 import UploadMessage, UploadState

_PR_SET_PDEATHSIG = 1
DISK_THREADS = (1, 4, 16)
"""The disk is written by so many threads; the fastest counts."""


async def _drop(messages: AsyncIterator[UploadMessage], _context: object) -> UploadState:
    count = 0
    async for _ in messages:
        count += 1
    return UploadState(chunks_stored=count)


async def _serve(folder: Path) -> None:
    member = load_member(folder, Role.COORDINATOR, time.time())
    server = grpc.aio.server(options=OPTIONS)
    handler = grpc.stream_unary_rpc_method_handler(
        _drop,
        request_deserializer=UploadMessage.FromString,
        response_serializer=UploadState.SerializeToString,
    )
    service = grpc.method_handlers_generic_handler("cipherward.v1.Coordinator", {"Upload": handler})
    server.add_generic_rpc_handlers((service,))
    port = server.add_secure_port("127.0.0.1:0", member.server_credentials())
    await server.start()
    sys.stdout.write(f"127.0.0.1:{port}\n")
    sys.stdout.flush()
    await server.wait_for_termination()


@contextmanager
def bare_server(coordinator: Path) -> Iterator[str]:
    """The address of a server in a process of its own."""
    command = [sys.executable, "-m", __spec__.name, str(coordinator)]
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    with subprocess.Popen(  # noqa: S603 - our own interpreter and module, no shell
        command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        try:
            address = process.stdout.readline().strip() if process.stdout else ""
            if not address:
                raise UnavailableError("the bare gRPC server of the benchmark did not start")
            yield address
        finally:
            process.kill()


def bare_disk(folder: Path, sizes: list[list[int]], threads: int) -> float:
    """Seconds to hash, write and sync uploads of messages of those ``sizes``, in segments as a coordinator's."""
    segments = [segment for upload in sizes for segment in _segments(upload)]
    content = os.urandom(max(map(sum, segments)))

    def write(job: tuple[int, list[int]]) -> None:
        number, segment = job
        at = 0
        for size in segment:
            hashlib.sha256(memoryview(content)[at : at + size]).digest()
            at += size
        file = os.open(folder / str(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(file, memoryview(content)[:at])
            os.fsync(file)
        finally:
            os.close(file)

    folder.mkdir()
    try:
        with ThreadPoolExecutor(max_workers=threads) as pool:
            start = time.monotonic()
            for _ in pool.map(write, enumerate(segments)):
                pass
            return time.monotonic() - start
    finally:
        for number in range(len(segments)):
            (folder / str(number)).unlink(missing_ok=True)
        folder.rmdir()


def _segments(sizes: list[int]) -> list[list[int]]:
    found: list[list[int]] = [[]]
    for size in sizes:
        if sum(found[-1]) >= SEGMENT_BYTES:
            found.append([])
        found[-1].append(size)
    return found


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    limit_arenas()
    asyncio.run(_serve(Path(sys.argv[1])))
