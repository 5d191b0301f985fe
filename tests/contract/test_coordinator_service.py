"""The service as a whole: what is unforeseen, full disks, restarts, health, a clean end."""

from __future__ import annotations

import asyncio
import errno
import time
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cipherward import durable
from cipherward.coordinator.daemon.service import Service, Settings
from cipherward.crypto.labels import Label
from cipherward.crypto.signing import record_digest
from cipherward.errors import (
    EnvironmentProblem,
)
from cipherward.ids import Role
from cipherward.proto.v1 import coordinator_pb2 as pb

MODEL = b"\x07" * 32


async def test_the_unforeseen_is_told_and_survived(
    world: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    async with world.running(world.folder) as address:
        anna, *_ = await world.started(address)
        with monkeypatch.context() as patched:
            broken = "cipherward.coordinator.store.studies.StudyTable.record"
            patched.setattr(broken, lambda *_: 1 / 0)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await anna.record(1, pb.RECORD_KIND_ROUND)
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert "CW-900" in caught.value.details() and "ZeroDivision" not in caught.value.details()
        assert await anna.record(1, pb.RECORD_KIND_ROUND)


async def test_a_full_disk_loses_nothing(world: Any, updates: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world.running(world.folder) as address:
        anna, *_ = await world.planned(address)
        header, chunks = await anna.header(1), updates[0][1]
        await anna.send("Upload", anna.messages(header, chunks[:1]))

        def full(_fd: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(durable.os, "fsync", full)
            with pytest.raises(grpc.RpcError) as caught:
                await anna.send("Upload", anna.messages(header, chunks, 1))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "disk is full" in caught.value.details()
        assert (await anna.stub.GetUploadState(header)).chunks_stored == 1
        assert (await anna.send("Upload", anna.messages(header, chunks, 1))).chunks_stored == len(chunks)


async def test_a_restart_goes_on_where_it_was(world: Any, cipher: Any, updates: Any) -> None:
    async with world.running(world.folder) as address:
        sites = await world.planned(address)
        await world.each(site.contribute(1, updates[i][1]) for i, site in enumerate(sites[:3]))
        await sites[3].upload(1, updates[3][1][:2])
    async with world.running(world.folder) as address:
        anna, *_, dora = sites = world.sites(address, sites[0].trust)
        header = await dora.header(1)
        assert (await dora.stub.GetUploadState(header)).chunks_stored == 2
        await dora.send("Upload", dora.messages(header, updates[3][1], 2))
        await dora.commit(1, updates[3][1])
        await anna.until(lambda s: s.phase == pb.PHASE_RELEASE)
    async with world.running(world.folder) as address:
        anna, *_ = sites = world.sites(address, sites[0].trust)
        snapshot = await anna.snapshot()
        closed = await anna.record(1, pb.RECORD_KIND_CLOSE)
        assert snapshot.close_digest == record_digest(Label.CLOSE_RECORD, closed)
        total = cipher.open_sum(await anna.fetch_sum(1), anna.length, 4)
        assert abs(total[-1] - 4) < 0.1
        await world.each(site.report(1, MODEL) for site in sites)
        assert (await anna.until(lambda s: s.round == 2)).phase == pb.PHASE_OPEN


async def test_health_metrics_and_port(world: Any) -> None:
    async with world.running(world.folder, metrics_port=0) as address:
        assert (world.folder / "address").read_text().strip() == address
        operator = world.operator(address)
        reply = await health_pb2_grpc.HealthStub(operator.channel).Check(
            health_pb2.HealthCheckRequest(service="cipherward.v1.Coordinator")
        )
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(EnvironmentProblem, match="already running"):
            await Service(Settings(world.folder, "127.0.0.1:0")).run(print, asyncio.Event())
        other = world.consortium.member(Role.COORDINATOR, "second")
        folder = world.consortium.folder / "coordinator-second"
        assert other.identity.name == "second"
        with pytest.raises(EnvironmentProblem, match="cannot listen"):
            await Service(Settings(folder, address)).run(print, asyncio.Event())


async def test_a_drain_ends_watch_streams(world: Any) -> None:
    started = time.monotonic()
    async with world.running(world.folder) as address:
        anna, *_ = await world.started(address)
        stream = anna.stub.WatchWork(pb.WatchWorkRequest())
        assert await stream.read()
        watched = world.operator(address).stub.WatchStudy(pb.StudyStatusRequest())
        status = await watched.read()
        assert status.sites[0].connected
    assert time.monotonic() - started < 10
    assert await stream.read() is grpc.aio.EOF
