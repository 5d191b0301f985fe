"""What was uploaded is checked in a process of its own, in memory that both see."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cipherward.coordinator.api.inspection import Inspection, named
from cipherward.coordinator.blobs.buffers import Buffer, Buffers
from cipherward.crypto.merkle import leaf_hash
from cipherward.crypto.suites.base import SuiteParams
from cipherward.crypto.suites.registry import suite
from cipherward.errors import FormatError, UnavailableError

LENGTH, SITES = 30_000, 4


@pytest.fixture(scope="module")
def inspection() -> Iterator[Inspection]:
    made = Inspection()
    yield made
    made.close()


@pytest.fixture
def buffer(inspection: Inspection) -> Iterator[Buffer]:
    taken = inspection.buffers.take()
    yield taken
    inspection.buffers.give_back(taken)


@pytest.fixture
def params() -> SuiteParams:
    chosen = suite("quorum")
    return chosen.parameters(next(iter(chosen.parameter_sets)), None, SITES)


def chunks_of(params: SuiteParams) -> list[bytes]:
    """Any residues below the modulus are a well-formed chunk."""
    random = np.random.default_rng(1)
    return [
        random.integers(0, 2**20, params.upload_chunk_bytes(index, LENGTH) // 4, dtype="<u4").tobytes()
        for index in range(params.chunk_count(LENGTH))
    ]


def inspect(
    inspection: Inspection, buffer: Buffer, params: SuiteParams, chunks: list[bytes], first: int
) -> None:
    for chunk in chunks:
        buffer.add(chunk)
    claimed = [leaf_hash(chunk) for chunk in chunks]
    sizes = [len(chunk) for chunk in chunks]
    inspection.chunks(buffer, first, sizes, claimed, named(params, SITES), LENGTH)


def test_a_right_run_passes_and_is_left_as_it_is(
    inspection: Inspection, buffer: Buffer, params: SuiteParams
) -> None:
    chunks = chunks_of(params)
    inspect(inspection, buffer, params, chunks[1:], 1)
    assert bytes(buffer.content) == b"".join(chunks[1:])


def test_the_chunk_that_was_damaged_is_named(
    inspection: Inspection, buffer: Buffer, params: SuiteParams
) -> None:
    chunks = chunks_of(params)
    for chunk in chunks:
        buffer.add(chunk)
    claimed = [leaf_hash(chunk) for chunk in chunks]
    claimed[1] = bytes(32)
    sizes = [len(chunk) for chunk in chunks]
    with pytest.raises(FormatError, match="chunk 1 does not have the digest"):
        inspection.chunks(buffer, 0, sizes, claimed, named(params, SITES), LENGTH)


def test_the_chunk_of_another_structure_is_named(
    inspection: Inspection, buffer: Buffer, params: SuiteParams
) -> None:
    chunks = chunks_of(params)
    chunks[1] = chunks[1][:-4] + struct.pack("<I", 2**32 - 1)
    with pytest.raises(FormatError, match=r"chunk 1 .*residue \d+ is not below the modulus"):
        inspect(inspection, buffer, params, chunks, 0)


def test_leaves_are_the_trees(inspection: Inspection, buffer: Buffer) -> None:
    parts = [os.urandom(size) for size in (1, 9_000, 4096)]
    for part in parts:
        buffer.add(part)
    assert inspection.leaves(buffer, [len(part) for part in parts]) == [leaf_hash(part) for part in parts]


def test_killed_it_is_an_outage_and_starts_again(
    inspection: Inspection, buffer: Buffer, params: SuiteParams
) -> None:
    inspect(inspection, buffer, params, chunks_of(params), 0)
    pid = inspection.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)  # it is still there when the request begins
    threading.Timer(0.5, os.kill, (pid, signal.SIGKILL)).start()
    with pytest.raises(UnavailableError):
        inspection.leaves(buffer, [1])
    assert inspection.leaves(buffer, [1]) == [leaf_hash(buffer.content[:1])]


def test_a_reply_that_is_too_short_is_no_answer(
    inspection: Inspection, buffer: Buffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection._worker, "request", lambda *_, doing: bytes(32))
    buffer.add(bytes(3))
    with pytest.raises(UnavailableError):
        inspection.leaves(buffer, [1, 1, 1])


def test_the_other_process_gets_it_for_reading_only(inspection: Inspection) -> None:
    assert fcntl.fcntl(inspection.buffers.fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    with pytest.raises(OSError):
        os.pwrite(inspection.buffers.fd, b"x", 0)


def pages(buffers: Buffers) -> int:
    """Bytes that the system has set aside for it."""
    return os.fstat(buffers.fd).st_blocks * 512


def test_buffers_hold_what_fits_and_their_memory_goes_back() -> None:
    buffers = Buffers(5000, 3, kept=1)
    taken = [buffers.take() for _ in range(3)]
    with pytest.raises(UnavailableError):
        buffers.take()
    for one in taken:
        one.add(bytes([7]) * 8000)
        with pytest.raises(ValueError):
            one.add(bytes(200))
        assert bytes(one.content) == bytes([7]) * 8000
    assert pages(buffers) == 3 * 8192
    buffers.give_back(taken[0])
    assert pages(buffers) == 3 * 8192, "one is kept"
    buffers.give_back(taken[1])
    assert pages(buffers) == 2 * 8192
    assert bytes(taken[2].content) == bytes([7]) * 8000
    again = [buffers.take(), buffers.take()]
    assert not any(one.used for one in again)
    for one in (*again, taken[2]):
        buffers.give_back(one)
    assert pages(buffers) == 0
    buffers.close()
    assert not Path(f"/proc/self/fd/{buffers.fd}").exists()
