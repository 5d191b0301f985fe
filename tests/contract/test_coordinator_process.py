"""The coordinator as a process of its own: killed, stopped, started twice, on a port that is taken."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from kit_process import LAUNCHER, process, spawn

from cipherward.coordinator.aggregation.base import Stopped, SumJob
from cipherward.coordinator.aggregation.local import LocalEngine
from cipherward.coordinator.blobs.blobs import Blobs
from cipherward.coordinator.blobs.writer import SegmentWriter
from cipherward.coordinator.store.chunks import ChunkSet, Segment
from cipherward.crypto.merkle import leaf_hash
from cipherward.crypto.suites.registry import suite
from cipherward.proto.v1 import coordinator_pb2 as pb


async def test_kill_at_any_moment_loses_nothing(world: Any, cipher: Any, updates: Any) -> None:
    with process(world.folder) as (running, address):
        sites = await world.started(address, rounds=1)
        await asyncio.gather(*(site.join(1) for site in sites))
        trust = sites[0].trust
        # Killed with an upload half-way ...
        header = await sites[0].header(1)
        await sites[0].send("Upload", sites[0].messages(header, updates[0][1][:1]))
        running.send_signal(signal.SIGKILL)
        running.wait()
    with process(world.folder) as (running, address):
        sites = world.sites(address, trust)
        stored = (await sites[0].stub.GetUploadState(header)).chunks_stored
        assert stored == 1
        await sites[0].send("Upload", sites[0].messages(header, updates[0][1], 1))
        await sites[0].commit(1, updates[0][1])
        for i in (1, 2, 3):
            await sites[i].contribute(1, updates[i][1])
        # ... and the moment that U is fixed, whatever the sum has come to.
        running.send_signal(signal.SIGKILL)
        running.wait()
    with process(world.folder) as (_, address):
        sites = world.sites(address, trust)
        await sites[0].until(lambda s: s.phase == pb.PHASE_RELEASE)
        total = cipher.open_sum(await sites[0].fetch_sum(1), sites[0].length, 4)
        expected = sum(update.astype(float) for update, _ in updates)
        np.testing.assert_allclose(total, expected, atol=cipher.params.error_bound(4))
        await asyncio.gather(*(site.report(1, b"\x07" * 32) for site in sites))
        assert (await sites[0].snapshot()).state == pb.STUDY_STATE_FINISHED


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_it_in_good_time(world: Any, number: signal.Signals) -> None:
    with process(world.folder) as (running, address):
        anna, *_ = await world.started(address)
        stream = anna.stub.WatchWork(pb.WatchWorkRequest())
        await stream.read()

        async def hanging() -> Any:
            yield pb.UploadMessage()
            await asyncio.sleep(60)

        upload = asyncio.ensure_future(anna.stub.Upload(hanging()))
        started = time.monotonic()
        running.send_signal(number)
        assert await asyncio.to_thread(running.wait, 15) == 0
        assert time.monotonic() - started < 15
        assert await stream.read() is grpc.aio.EOF, "the watch ended, it was not cut"
        assert not (world.folder / "address").exists()
        with contextlib.suppress(grpc.RpcError, asyncio.CancelledError):
            await upload


def test_a_port_in_use_is_said(world: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        running = spawn(world.folder, f"127.0.0.1:{taken.getsockname()[1]}")
        assert running.wait(20) == 3
        assert running.stdout is not None and running.stdout.read() == ""
        running.stdout.close()
    assert "CW-200 cannot listen on" in (world.folder / "log").read_text()


def test_a_wrong_address_and_a_wrong_folder(world: Any, tmp_path: Path) -> None:
    for folder, listen, status in ((world.folder, "nonsense", 2), (tmp_path, "127.0.0.1:0", 3)):
        running = spawn(folder, listen)
        assert running.wait(20) == status
        assert running.stdout is not None
        running.stdout.close()


async def test_status_reads_the_store_beside_a_running_service(world: Any) -> None:
    command = [sys.executable, "-c", LAUNCHER, "status", "--dir", str(world.folder), "--json"]
    with process(world.folder) as (_, address):
        await world.started(address)
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        shown = json.loads(done.stdout)
        assert shown["listening"] == address
        assert [(s["study"], s["phase"], s["round"]) for s in shown["studies"]] == [("trial", "open", 1)]
    text = subprocess.run(command[:-1], capture_output=True, text=True, check=True).stdout
    assert "trial: running, round 1 (open)" in text


def test_a_sum_that_was_stopped_goes_on_to_the_same_bytes(updates: Any, cipher: Any, tmp_path: Path) -> None:
    blobs = Blobs(f"file://{tmp_path}/blobs")

    def stored(chunks: list[bytes]) -> ChunkSet:
        writer = SegmentWriter(blobs, 0)
        for chunk in chunks:
            writer.add(chunk, leaf_hash(chunk))
        segment = writer.flush()
        assert segment
        return ChunkSet("u", (segment,))

    sets = [stored(chunks) for _, chunks in updates]
    length, adder = len(updates[0][0]), lambda: suite("shared-key").chunk_adder(cipher.params)
    count = cipher.params.chunk_count(length)
    engine = LocalEngine(blobs)

    def run(done: ChunkSet, stop: Callable[[], bool]) -> tuple[ChunkSet, list[Segment]]:
        kept: list[Segment] = []
        return engine.run(SumJob(sets, length, count, adder, done), kept.append, stop), kept

    whole, _ = run(ChunkSet("s"), lambda: False)
    with pytest.raises(Stopped):
        run(ChunkSet("s"), lambda: True)
    first = blobs.read(whole.place(0))
    part = ChunkSet("s", (Segment(0, blobs.put([first]), (len(first),), (leaf_hash(first),)),))
    again, kept = run(part, lambda: False)
    assert again.leaves() == whole.leaves() and kept[0].first == 1
