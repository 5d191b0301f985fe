"""A caller that hangs up while its transaction is carried out: that is committed, and what follows from it happens."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from kit_process import inspectors

from cipherward.coordinator.blobs.blobs import Blobs
from cipherward.coordinator.daemon import readiness
from cipherward.coordinator.daemon.studies import Studies
from cipherward.errors import EnvironmentProblem, LimitError
from cipherward.proto.v1 import coordinator_pb2 as pb
from cipherward.proto.v1 import round_pb2


class Held:
    """The next change of a study waits in its transaction until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._reached, self._go = threading.Event(), threading.Event()
        write = Studies._write

        def held(*arguments: Any) -> Any:
            view = write(*arguments)
            self._reached.set()
            self._go.wait(10)
            return view

        monkeypatch.setattr(Studies, "_write", held)

    async def hang_up(
        self, call: Callable[[], Awaitable[Any]], meanwhile: Callable[[], Awaitable[Any]] | None = None
    ) -> None:
        """Call, and hang up while the change is held; it goes on after ``meanwhile``."""
        calling = asyncio.ensure_future(call())
        assert await asyncio.to_thread(self._reached.wait, 10)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        await asyncio.sleep(0.5)  # until the service has heard of it
        if meanwhile is not None:
            await asyncio.wait_for(meanwhile(), 5)
        self._go.set()


def cancellable(caller: Any) -> Any:
    """Its streams are calls that end with the task that waits for them."""

    async def send(rpc: str, messages: Any) -> Any:
        return await getattr(caller.stub, rpc)(iter(messages))

    caller.send = send
    return caller


async def test_a_site_that_hangs_up_at_the_last_commit(
    world: Any, updates: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.running(world.folder) as address:
        *others, dora = await world.planned(address)
        for number, site in enumerate(others):
            await site.contribute(1, updates[number][1])
        await dora.upload(1, updates[3][1])
        record = await dora.commit_record(1, updates[3][1])
        with monkeypatch.context() as patch:
            held = Held(patch)
            await held.hang_up(lambda: dora.stub.PostCommit(pb.PostRequest(study=dora.study, record=record)))
        # Nobody else would begin the sum.
        await others[0].until(lambda snapshot: snapshot.phase == pb.PHASE_RELEASE)


async def test_an_operator_that_hangs_up_at_the_start(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world.running(world.folder) as address:
        signed, trust = world.manifest()
        operator = cancellable(world.operator(address))
        with monkeypatch.context() as patch:
            held = Held(patch)
            await held.hang_up(lambda: operator.start(signed, world.weights))
        anna = world.sites(address, trust)[0]
        await anna.until(lambda snapshot: snapshot.study == anna.study)
        stream = anna.stub.GetInitialWeights(pb.GetManifestRequest(study=anna.study))
        assert b"".join([chunk.data async for chunk in stream]) == world.weights.astype("<f4").tobytes()


@pytest.mark.parametrize("version", [1, 2])
async def test_an_operator_that_hangs_up_and_starts_again(
    world: Any, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    """Both would write the same version: the first start is not over before it has."""
    async with world.running(world.folder) as address:
        signed, trust = world.manifest()
        if version == 2:
            await world.operator(address).start(signed, world.weights)
            signed, trust = world.manifest(version=2, first_round=2, previous_digest=trust.digest)
        first, second = cancellable(world.operator(address)), world.operator(address)

        async def too_early() -> None:
            async with world.refused(LimitError, "too many StartStudy calls are open"):
                await second.start(signed, world.weights)

        with monkeypatch.context() as patch:
            held = Held(patch)
            await held.hang_up(lambda: first.start(signed, world.weights), too_early)
        end = time.monotonic() + 10
        while True:
            try:
                await second.start(signed, world.weights)
                break
            except grpc.RpcError:  # the first is still on its way out
                assert time.monotonic() < end
                await asyncio.sleep(0.05)
        anna = world.sites(address, trust)[0]
        await anna.until(lambda snapshot: snapshot.manifest_version == 1)
        assert await anna.stub.GetManifest(pb.GetManifestRequest(study=anna.study)) == signed


async def test_a_relayed_item_is_stored_though_blobs_cannot_be_removed(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.running(world.folder) as address:
        signed, trust = world.manifest()
        await world.operator(address).start(signed, world.weights)
        anna, bert, *_ = world.sites(address, trust)

        def failing(*_: Any) -> None:
            raise EnvironmentProblem("cannot remove a blob")

        with monkeypatch.context() as patch:
            patch.setattr(Blobs, "delete", failing)
            await anna.put_relay(anna.key_item("bert", b"sealed for bert"))
        request = pb.GetRelayRequest(
            study=bert.study, kind=round_pb2.RelayItem.KIND_SHARED_KEY, sender="anna"
        )
        messages = [message async for message in bert.stub.GetRelay(request)]
        assert b"".join(message.data for message in messages) == b"sealed for bert"


async def test_a_site_that_hangs_up_at_a_relayed_key(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world.running(world.folder) as address:
        signed, trust = world.manifest()
        await world.operator(address).start(signed, world.weights)
        anna, bert, *_ = map(cancellable, world.sites(address, trust))
        with monkeypatch.context() as patch:
            held = Held(patch)
            await held.hang_up(lambda: anna.put_relay(anna.key_item("bert", b"sealed for bert")))
        request = pb.GetRelayRequest(
            study=bert.study, kind=round_pb2.RelayItem.KIND_SHARED_KEY, sender="anna"
        )
        messages = [message async for message in bert.stub.GetRelay(request)]
        assert b"".join(message.data for message in messages) == b"sealed for bert"


async def test_the_end_does_not_wait_for_a_checker_that_hangs(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(readiness, "CHECK_SECONDS", 2.0)
    async with world.running(world.folder) as address:
        operator = world.operator(address)
        [inspector] = inspectors()
        os.kill(inspector, signal.SIGSTOP)
        health = operator.channel.unary_unary("/grpc.health.v1.Health/Check")
        looks = [health(b"", timeout=0.5) for _ in range(8)]
        for look in looks:
            with pytest.raises(grpc.RpcError):
                await look
        # All of them wait for the same answer: threads are left for everybody else.
        async with asyncio.timeout(1):
            await asyncio.gather(*(asyncio.to_thread(int) for _ in range(8)))
        assert await health(b"") == b"\x08\x02", "not serving"
        stopping = time.monotonic()
    assert time.monotonic() - stopping < 12
    assert not inspectors()
