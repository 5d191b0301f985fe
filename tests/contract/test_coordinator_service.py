"""The service as a whole: what is unforeseen, full disks, restarts, health, a clean end."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from kit_process import inspectors

from cipherward import durable, isolated
from cipherward.coordinator.daemon import readiness, upkeep
from cipherward.coordinator.daemon.service import Service, Settings
from cipherward.coordinator.store.database import Store
from cipherward.crypto.labels import Label
from cipherward.crypto.signing import record_digest
from cipherward.errors import EnvironmentProblem, NotFoundError
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


async def test_the_address_and_the_port(world: Any) -> None:
    async with world.running(world.folder, metrics_port=0) as address:
        assert (world.folder / "address").read_text().strip() == address
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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def page(port: int, path: str) -> tuple[int, str]:
    def fetch() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=15) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return await asyncio.to_thread(fetch)


@pytest.mark.slow
async def test_health_says_whether_it_can_work(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "FIGURES_SECONDS", 0.6)
    port = free_port()
    async with world.running(world.folder, metrics_port=port) as address:
        health = health_pb2_grpc.HealthStub(world.operator(address).channel)
        request = health_pb2.HealthCheckRequest(service="cipherward.v1.Coordinator")
        assert (await health.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
        async with world.refused(NotFoundError):
            await health.Check(health_pb2.HealthCheckRequest(service="another"))
        watched = health.Watch(request)
        assert (await watched.read()).status == health_pb2.HealthCheckResponse.SERVING
        for path in ("/healthz", "/readyz"):
            assert (await page(port, path))[0] == 200, path
        assert (await page(port, "/"))[0] == 404

        def full(_fd: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(readiness, "FRESH_SECONDS", 0.0)
            patched.setattr(durable.os, "fsync", full)
            status, text = await page(port, "/readyz")
            assert status == 503 and "disk is full" in json.loads(text)["failed"]["blobs"]
            assert (await watched.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert (await health.Check(request)).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert (await page(port, "/healthz"))[0] == 200, "it is alive"
        with monkeypatch.context() as patched:
            patched.setattr(readiness, "FRESH_SECONDS", 0.0)
            assert (await page(port, "/readyz"))[0] == 200
            assert (await watched.read()).status == health_pb2.HealthCheckResponse.SERVING
            patched.setattr(readiness, "LEAST_FREE_BYTES", 2**62)
            status, text = await page(port, "/readyz")
            assert status == 503 and list(json.loads(text)["failed"]) == ["disk"]
        with monkeypatch.context() as patched:
            patched.setattr(readiness, "FRESH_SECONDS", 0.0)

            def refused(*_: Any) -> None:
                raise OSError(errno.ENOMEM, "Cannot allocate memory")

            with monkeypatch.context() as inner:
                inner.setattr(isolated, "_spawn", refused)
                [inspector] = inspectors()
                os.kill(inspector, signal.SIGKILL)
                status, text = await page(port, "/readyz")
                failed = json.loads(text)["failed"]
                assert (status, list(failed)) == (503, ["uploads"])
                assert "a worker process failed" in failed["uploads"]
            assert (await page(port, "/readyz"))[0] == 200, "it is started again"
        # A transaction that hangs: neither alive nor ready.
        hanging = threading.Event()
        with monkeypatch.context() as patched:
            patched.setattr(readiness, "CHECK_SECONDS", 0.3)
            patched.setattr(readiness, "FRESH_SECONDS", 0.0)
            patched.setattr(Store, "transaction", lambda _self: hanging.wait(20))
            status, text = await page(port, "/readyz")
            assert status == 503 and "no answer" in text
            assert (await page(port, "/healthz"))[0] == 503
            assert (await health.Check(request)).status == health_pb2.HealthCheckResponse.NOT_SERVING
            async with asyncio.timeout(15):
                while "cipherward_store_wait_seconds 0.0" in (shown := (await page(port, "/metrics"))[1]):
                    await asyncio.sleep(0.2)
            assert "cipherward_ready 0.0" in shown
            waited = re.search(r"^cipherward_store_wait_seconds (\S+)$", shown, re.MULTILINE)
            assert waited and float(waited[1]) > 0.5
            hanging.set()
    with pytest.raises(OSError, match="refused"):
        await page(port, "/healthz")


async def test_metrics_of_a_round(world: Any, updates: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "FIGURES_SECONDS", 0.1)
    port = free_port()
    async with world.running(world.folder, metrics_port=port) as address:
        sites = await world.planned(address, rounds=1)
        text = (await page(port, "/metrics"))[1]
        assert 'cipherward_round_phase{phase="upload",study="trial"} 1.0' in text
        await world.each(site.contribute(1, updates[i][1]) for i, site in enumerate(sites))
        watching = sites[0].stub.WatchWork(pb.WatchWorkRequest())
        await watching.read()
        await sites[0].until(lambda s: s.phase == pb.PHASE_RELEASE)
        await asyncio.sleep(0.3)
        with pytest.raises(grpc.RpcError):
            for _ in range(50):
                await sites[0].stub.Hello(pb.HelloRequest(protocol=1))
        text = (await page(port, "/metrics"))[1]
        size = sum(len(chunk) for _, chunks in updates for chunk in chunks)
        for line in (
            f"cipherward_upload_bytes_total {float(size):g}",
            'cipherward_calls_total{rpc="PostCommit",status="OK"} 4.0',
            'cipherward_calls_total{rpc="Hello",status="RESOURCE_EXHAUSTED"} 1.0',
            'cipherward_calls_limited_total{limit="per_second",rpc="Hello"} 1.0',
            'cipherward_calls_open{rpc="WatchWork"} 1.0',
            'cipherward_phase_seconds_count{phase="upload"} 1.0',
            'cipherward_phase_seconds_count{phase="sum"} 1.0',
            f"cipherward_summed_values_total {4.0 * sites[0].length:g}",
            "cipherward_sites_connected 1.0",
            "cipherward_studies_running 1.0",
            "cipherward_credential_days 29.0",
            "cipherward_ready 1.0",
            'cipherward_round{study="trial"} 1.0',
        ):
            name, _, value = line.rpartition(" ")
            found = [one.rpartition(" ")[2] for one in text.splitlines() if one.startswith(name + " ")]
            assert found and float(found[0]) == pytest.approx(float(value), rel=1e-4), (line, found)
        assert "process_resident_memory_bytes" in text
        await world.each(site.report(1, b"\x07" * 32) for site in sites)
        text = (await page(port, "/metrics"))[1]
        assert 'cipherward_rounds_total{outcome="released"} 1.0' in text
        assert 'study="trial"' not in text, "nothing is left of a study that is over"
        assert not any(site.name in text for site in sites), "no label for each site"
