"""An upload on its way in: what is stored follows what was stored before, and memory is held by who has a place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cipherward.coordinator.api import inspection as inspection_module
from cipherward.coordinator.api.inspection import Inspection
from cipherward.coordinator.api.reception import Reception
from cipherward.coordinator.api.staging import ChunkStage, ShareStage, Stage
from cipherward.coordinator.api.storing import taken_back
from cipherward.coordinator.blobs.blobs import Blobs
from cipherward.coordinator.store.chunks import Segment
from cipherward.crypto.merkle import leaf_hash
from cipherward.crypto.quorum_records import SEALED_SHARE_BYTES
from cipherward.crypto.suites.registry import suite
from cipherward.errors import EnvironmentProblem, LateError, OutageError, ProtocolError, UnavailableError
from cipherward.proto.v1.coordinator_pb2 import ShareMessage, UploadMessage

SITES, LENGTH = 4, 500_000
PARAMS = suite("quorum").parameters("q32", None, SITES)
SIZES = [PARAMS.upload_chunk_bytes(index, LENGTH) for index in range(PARAMS.chunk_count(LENGTH))]
VERSION: Any = SimpleNamespace(
    params=PARAMS,
    length=LENGTH,
    chunk_sizes=SIZES,
    trust=SimpleNamespace(manifest=SimpleNamespace(roster=range(SITES))),
)


@pytest.fixture
def inspection() -> Iterator[Inspection]:
    made = Inspection()
    yield made
    made.close()


class Upload:
    """One upload of zeros to a store that remembers what it was told."""

    def __init__(
        self, inspection: Inspection, folder: Path, messages: AsyncIterator[UploadMessage], shares: int = 0
    ) -> None:
        blobs = Blobs(f"file://{folder}")
        self.chunks = ChunkStage("u", 0, blobs, inspection, VERSION)
        self.shares = ShareStage("s", 0, blobs, inspection, shares)
        self.recorded: list[Segment] = []

        async def record(parts: Sequence[tuple[Stage, Segment]]) -> None:
            for stage, segment in parts:
                assert segment.first == stage.stored, "a gap"
                stage.stored = segment.end
                self.recorded.append(segment)

        self.reception = Reception(
            messages,  # type: ignore[arg-type]
            self.chunks,
            self.shares,
            record,
            asyncio.Event(),
            inspection.threads,
        )


def message(index: int) -> UploadMessage:
    data = bytes(SIZES[index])
    return UploadMessage(index=index, data=data, leaf_hash=leaf_hash(data))


async def all_of_them() -> AsyncIterator[UploadMessage]:
    for index in range(len(SIZES)):
        yield message(index)
        await asyncio.sleep(0)


def free(inspection: Inspection) -> int:
    return len(inspection.buffers._warm) + len(inspection.buffers._cold)


async def test_nothing_is_stored_behind_what_could_not_be_checked(
    inspection: Inspection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, asked = free(inspection), 0
    check = inspection.chunks

    def fails_once(*arguments: Any) -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise UnavailableError("the checker is gone")
        check(*arguments)

    monkeypatch.setattr(inspection, "chunks", fails_once)
    upload = Upload(inspection, tmp_path, all_of_them())
    async with upload.reception as reception:
        with pytest.raises(UnavailableError):
            await reception.run(2 * SIZES[0], 5.0, lambda: False)
    assert asked == 1 and not upload.recorded
    assert free(inspection) == before


async def test_all_of_an_upload_is_recorded_without_a_gap(inspection: Inspection, tmp_path: Path) -> None:
    before = free(inspection)
    upload = Upload(inspection, tmp_path, all_of_them())
    async with upload.reception as reception:
        assert await reception.run(2 * SIZES[0], 5.0, lambda: False)
    assert upload.chunks.stored == len(SIZES) and len(upload.recorded) >= 3
    assert free(inspection) == before


async def test_who_waits_for_a_place_holds_no_buffer(inspection: Inspection, tmp_path: Path) -> None:
    before, go = free(inspection), asyncio.Event()

    async def slowly() -> AsyncIterator[UploadMessage]:
        yield message(0)
        await go.wait()
        for index in range(1, len(SIZES)):
            yield message(index)

    upload = Upload(inspection, tmp_path, slowly())
    async with upload.reception as reception:
        assert not await reception.run(2 * SIZES[0], 0.1, lambda: True)
        assert upload.chunks.stored == 1
        go.set()
        await asyncio.sleep(0.1)
        assert free(inspection) == before
        assert await reception.run(SIZES[0], 5.0, lambda: False)
    assert upload.chunks.stored == len(SIZES)


async def test_buffers_come_back_whenever_a_call_is_cancelled(inspection: Inspection, tmp_path: Path) -> None:
    before = free(inspection)

    async def wrong_at_the_end() -> AsyncIterator[UploadMessage]:
        yield message(0)
        yield message(1)
        await asyncio.sleep(0)
        yield message(0)

    async def call(upload: Upload) -> None:
        async with upload.reception as reception:
            await reception.run(2**21, 5.0, lambda: False)

    for steps in range(25):
        task = asyncio.create_task(call(Upload(inspection, tmp_path, wrong_at_the_end())))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises((ProtocolError, asyncio.CancelledError)):
            await task
        async with asyncio.timeout(5):
            while free(inspection) != before:
                await asyncio.sleep(0.01)


async def test_chunks_whose_shares_could_not_be_written_leave_no_blob(
    inspection: Inspection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def messages() -> AsyncIterator[UploadMessage]:
        for index in range(len(SIZES)):
            yield message(index)
        sealed = bytes(SEALED_SHARE_BYTES)
        yield UploadMessage(share=ShareMessage(index=0, sealed=sealed))

    def full(*_: Any) -> Segment:
        raise EnvironmentProblem("the disk is full")

    before, upload = free(inspection), Upload(inspection, tmp_path, messages(), shares=1)
    monkeypatch.setattr(upload.shares, "write", full)
    async with upload.reception as reception:
        with pytest.raises(EnvironmentProblem):
            await reception.run(2**40, 5.0, lambda: False)
    assert not upload.recorded and free(inspection) == before
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("error", "left"), [(OutageError("no answer"), 1), (LateError("too late"), 0), (KeyError(), 0)]
)
async def test_only_after_an_outage_a_blob_may_still_be_needed(
    tmp_path: Path, error: Exception, left: int
) -> None:
    blobs = Blobs(f"file://{tmp_path}")
    segment = Segment(0, blobs.put([b"x"]), (1,), (leaf_hash(b"x"),))
    with pytest.raises(type(error)):
        async with taken_back(blobs, [segment]):
            raise error
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == left


def test_there_are_buffers_for_every_place() -> None:
    places = inspection_module.FAST_PLACES + inspection_module.SLOW_PLACES
    made = Inspection()
    assert free(made) == 4 * places
    made.close()
