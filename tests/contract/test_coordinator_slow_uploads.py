"""Slow senders over real gRPC with mutual TLS: they give up their places to others, keep what they sent, and end."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest

from cipherward.coordinator.api import admission


def places(monkeypatch: pytest.MonkeyPatch, **values: Any) -> None:
    for name, value in values.items():
        monkeypatch.setattr(admission, name, value)


class SlowUpload:
    """Sends the header and some chunks, and the others when it is told."""

    def __init__(self, site: Any, header: Any, chunks: list[bytes], first: int = 1) -> None:
        self.go = asyncio.Event()

        async def messages() -> Any:
            for position, message in enumerate(site.messages(header, chunks)):
                if position == first + 1:
                    await self.go.wait()
                yield message

        self.call = asyncio.ensure_future(site.stub.Upload(messages()))


async def _until_stored(sites: list[Any], headers: list[Any], count: int) -> None:
    """One chunk each of so many uploads: which of them had the fast places is chance."""
    async with asyncio.timeout(10):
        while True:
            states = [await site.stub.GetUploadState(one) for site, one in zip(sites, headers, strict=True)]
            if sum(state.chunks_stored == 1 for state in states) >= count:
                return
            await asyncio.sleep(0.3)


async def test_slow_senders_do_not_keep_a_fast_one_waiting(
    world: Any, updates: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    places(monkeypatch, FAST_PLACES=2, PATIENCE_SECONDS=0.3)
    async with world.running(world.folder) as address:
        *slow, dora = await world.planned(address)
        headers = [await site.header(1) for site in slow]
        held = [
            SlowUpload(site, header, updates[number][1])
            for number, (site, header) in enumerate(zip(slow, headers, strict=True))
        ]
        await asyncio.sleep(0.2)
        started = time.monotonic()
        assert await asyncio.wait_for(dora.upload(1, updates[3][1]), 10) == len(updates[3][1])
        assert time.monotonic() - started < 5
        # What the slow ones sent so far is stored, and they go on where they are.
        await _until_stored(slow, headers, 2)
        for number, one in enumerate(held):
            one.go.set()
            state = await asyncio.wait_for(one.call, 10)
            assert state.chunks_stored == len(updates[number][1])
        for number, site in enumerate([*slow, dora]):
            await site.commit(1, updates[number][1])


async def test_a_slow_sender_alone_keeps_its_place(
    world: Any, updates: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    places(monkeypatch, FAST_PLACES=1, PATIENCE_SECONDS=0.1, SLOW_PLACES=0)
    async with world.running(world.folder) as address:
        anna, *_ = await world.planned(address)
        one = SlowUpload(anna, await anna.header(1), updates[0][1])
        await asyncio.sleep(0.5)
        one.go.set()
        assert (await asyncio.wait_for(one.call, 10)).chunks_stored == len(updates[0][1])


async def test_one_too_slow_for_a_slow_place_is_cut_off_and_resumes(
    world: Any, updates: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    places(monkeypatch, FAST_PLACES=1, PATIENCE_SECONDS=0.1, SLOW_PLACES=1, SLOW_SECONDS=0.4)
    async with world.running(world.folder) as address:
        anna, bert, cora, _ = await world.planned(address)
        header, chunks = await anna.header(1), updates[0][1]
        held = [SlowUpload(anna, header, chunks)]
        await asyncio.sleep(0.2)
        for number, site in enumerate((bert, cora), 1):
            held.append(SlowUpload(site, await site.header(1), updates[number][1]))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(held[0].call, 10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "too slow" in str(caught.value.details())
        for one in held[1:]:
            one.go.set()
        await asyncio.wait_for(asyncio.gather(*(one.call for one in held[1:])), 10)
        assert (await anna.stub.GetUploadState(header)).chunks_stored == 1
        assert (await anna.send("Upload", anna.messages(header, chunks, 1))).chunks_stored == len(chunks)
