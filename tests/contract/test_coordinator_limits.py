"""Each limit of the policy table, exceeded for real over mutual TLS, for each RPC that has it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import pytest

from cipherward.coordinator.api import admission, dispatch, policy, relay
from cipherward.coordinator.api.dispatch import RPCS
from cipherward.coordinator.api.policy import MAX_MESSAGE, MAX_METADATA, POLICIES, Policy
from cipherward.crypto.pki import member_files
from cipherward.errors import (
    FormatError,
    IdentityError,
    LateError,
    LimitError,
    WireError,
    from_wire,
)
from cipherward.ids import Role
from cipherward.proto.v1 import coordinator_pb2 as pb
from cipherward.proto.v1 import round_pb2
from cipherward.proto.v1.common_pb2 import ErrorDetail
from cipherward.site_agent.client.errors import translate

GARBAGE = b"\xff"
PROBE_SECONDS = 20


def raw(caller: Any, rpc: str) -> Any:
    """The RPC as bytes both ways, so that anything can be sent."""
    method = RPCS[rpc]
    return caller.channel.stream_stream(f"/{method.containing_service.full_name}/{method.name}")


def callers(world: Any, address: str) -> dict[Role, Any]:
    return {Role.SITE: world.Caller(world.members[0], address), Role.OPERATOR: world.operator(address)}


def allowed(found: dict[Role, Any], rpc: str) -> Any:
    return found[min(POLICIES[rpc].roles)]


async def outcome(call: Any) -> tuple[grpc.StatusCode, Any]:
    """The status, and the error that came with it."""

    async def read() -> None:
        with contextlib.suppress(grpc.RpcError):
            async for _ in call:
                pass

    await asyncio.wait_for(read(), PROBE_SECONDS)
    code = await call.code()
    for key, value in await call.trailing_metadata() or ():
        if key == "cw-error-bin":
            detail = ErrorDetail.FromString(value)
            return code, from_wire(WireError(detail.code, detail.what, detail.why, detail.fix))
    return code, None


async def first_to_end(calls: list[Any]) -> tuple[Any, Any]:
    """Its outcome, and which it was."""
    tasks = {asyncio.ensure_future(outcome(call)): call for call in calls}
    done, left = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in left:
        task.cancel()
    (one, *_) = done
    return one.result(), tasks[one]


async def once(caller: Any, rpc: str, *contents: bytes) -> tuple[grpc.StatusCode, Any]:
    async def messages() -> AsyncIterator[bytes]:
        for content in contents:
            yield content

    return await outcome(raw(caller, rpc)(messages(), timeout=PROBE_SECONDS))


def names(found: tuple[grpc.StatusCode, Any], limit: str, value: str = "") -> bool:
    code, error = found
    return bool(
        code is grpc.StatusCode.RESOURCE_EXHAUSTED
        and isinstance(error, LimitError)
        and f"the limit {limit} of " in error.why
        and value in error.why
    )


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replaces values in every row, where the row has one."""

    def change(**values: Any) -> None:
        for rpc, row in POLICIES.items():
            changed = {name: value for name, value in values.items() if getattr(row, name) is not None}
            monkeypatch.setitem(POLICIES, rpc, replace(row, **changed))

    return change


async def test_roles_and_sizes(world: Any) -> None:
    async with world.running(world.folder) as address:
        found = callers(world, address)
        for rpc, row in POLICIES.items():
            for role in set(found) - row.roles:
                code, error = await once(found[role], rpc, GARBAGE)
                assert code is grpc.StatusCode.PERMISSION_DENIED and "may not call" in error.what, rpc
            caller = allowed(found, rpc)
            told = await once(caller, rpc, bytes(row.max_message + 1))
            assert names(told, "max_message", policy.size(row.max_message)), (rpc, told)
            code, error = await once(caller, rpc, GARBAGE)
            assert code is grpc.StatusCode.INVALID_ARGUMENT and type(error) is FormatError, rpc
            code, error = await once(caller, rpc)
            assert type(error) is FormatError, rpc


async def test_what_the_transport_refuses_itself_names_its_limit_too(world: Any) -> None:
    async with world.running(world.folder) as address:
        found = callers(world, address)
        caller = found[Role.SITE]
        call = raw(caller, "Hello")(iter([bytes(MAX_MESSAGE + 1)]), timeout=PROBE_SECONDS)
        code, error = await outcome(call)
        assert (code, error) == (grpc.StatusCode.RESOURCE_EXHAUSTED, None)
        assert f"larger than max ({MAX_MESSAGE + 1} vs. {MAX_MESSAGE})" in await call.details()
        metadata = (("x-long", "x" * MAX_METADATA),)
        call = raw(caller, "Hello")(iter([b""]), timeout=PROBE_SECONDS, metadata=metadata)
        code, error = await outcome(call)
        assert (code, error) == (grpc.StatusCode.RESOURCE_EXHAUSTED, None)
        assert "metadata size exceeds" in await call.details()
        # A site takes both for what they are: something that a later try may mend.
        with pytest.raises(grpc.RpcError) as caught:
            await asyncio.to_thread(
                caller._blocking.Hello,
                pb.HelloRequest(version="x" * (MAX_MESSAGE + 1)),
                timeout=PROBE_SECONDS,
            )
        assert "larger than max" in str(translate(caught.value))


async def test_rates(world: Any) -> None:
    async with world.running(world.folder) as address:
        found = callers(world, address)
        for rpc, row in POLICIES.items():
            caller = allowed(found, rpc)
            began, calls = time.monotonic(), 0
            while True:
                told = await asyncio.gather(*(once(caller, rpc, GARBAGE) for _ in range(10)))
                calls += 10
                if any(names(each, "per_second", f"is {row.per_second:g} a caller") for each in told):
                    break
                assert calls <= row.burst + row.per_second * (time.monotonic() - began) + 10, rpc
            assert calls >= row.burst


async def test_open_calls(world: Any) -> None:
    async with world.running(world.folder) as address:
        found = callers(world, address)
        for rpc, row in POLICIES.items():
            caller = allowed(found, rpc)
            held = [raw(caller, rpc)() for _ in range(row.open_calls + 1)]
            told, refused = await first_to_end(held)
            assert names(told, "open_calls", str(row.open_calls)), rpc
            held.remove(refused)
            for call in held:
                assert not call.done(), rpc
                call.cancel()
        site = found[Role.SITE]
        await asyncio.sleep(0.2)
        held = []
        for rpc, row in POLICIES.items():
            if Role.SITE in row.roles and len(held) <= policy.CALLER_OPEN_CALLS:
                held += [raw(site, rpc)() for _ in range(row.open_calls)]
        told, _ = await first_to_end(held)
        assert names(told, "caller_open_calls", str(policy.CALLER_OPEN_CALLS))
        other = world.Caller(world.members[1], address)
        code, _ = await once(other, "Hello", pb.HelloRequest(protocol=1).SerializeToString())
        assert code is grpc.StatusCode.OK, "another caller is not concerned"
        for call in held:
            call.cancel()


async def test_a_caller_that_sends_nothing_is_cut_off(world: Any, rows: Any) -> None:
    rows(idle_seconds=0.3)
    async with world.running(world.folder) as address:
        found = callers(world, address)
        calls = {rpc: raw(allowed(found, rpc), rpc)() for rpc in POLICIES if Role.SITE in POLICIES[rpc].roles}
        assert len(calls) < policy.CALLER_OPEN_CALLS
        calls |= {
            rpc: raw(allowed(found, rpc), rpc)() for rpc in POLICIES if Role.SITE not in POLICIES[rpc].roles
        }
        for rpc, call in calls.items():
            assert names(await outcome(call), "idle_seconds", "0.3"), rpc


async def test_a_stream_takes_no_longer_than_its_row_allows(world: Any, rows: Any) -> None:
    rows(max_seconds=0.4)
    async with world.running(world.folder) as address:
        found = callers(world, address)
        for rpc, method in RPCS.items():
            if method.client_streaming:
                assert POLICIES[rpc].max_seconds is not None, rpc
                assert names(await outcome(raw(allowed(found, rpc), rpc)()), "max_seconds", "0.4"), rpc


async def test_a_reader_that_does_not_read_is_cut_off(world: Any, rows: Any) -> None:
    rows(idle_seconds=0.5)
    async with world.running(world.folder) as address:
        anna, *_ = await world.started(address)
        request = pb.GetManifestRequest(study="trial").SerializeToString()
        parts = [raw(anna, "GetInitialWeights")(iter([request])) for _ in range(2)]
        await asyncio.sleep(0.2)
        full = await once(anna, "GetInitialWeights", request)
        assert names(full, "open_calls"), "both wait for their reader"
        await asyncio.sleep(0.5 + dispatch.ABORT_SECONDS + 0.5)
        code, error = await once(anna, "GetInitialWeights", request)
        assert not names((code, error), "open_calls"), "they were given up"
        for call in parts:
            call.cancel()


async def test_totals(world: Any, updates: Any, rows: Any) -> None:
    async with world.running(world.folder) as address:
        anna, *_ = await world.planned(address)
        signed, trust = world.manifest(study="without-keys")
        await world.operator(address).start(signed, world.weights)
        maker = world.Site(world.members[0], address, trust)
        rows(max_total=100_000)
        chunks = updates[0][1]
        assert sum(map(len, chunks)) > 100_000
        async with world.refused(LimitError, "the limit max_total of Upload is 100000 B"):
            await anna.upload(1, chunks)
        async with world.refused(LimitError, "the limit max_total of PutRelay"):
            await maker.put_relay(maker.key_item("bert", content=bytes(200_000)))
        signed, _ = world.manifest(study="second")
        async with world.refused(LimitError, "the limit max_total of StartStudy"):
            await world.operator(address).start(signed, world.weights)


async def test_what_lies_here_for_others(world: Any, rows: Any) -> None:
    rows(max_stored=3 * 2**20 + 3 * 64)
    async with world.running(world.folder) as address:
        signed, trust = world.manifest()
        await world.operator(address).start(signed, world.weights)
        anna, *_ = sites = world.sites(address, trust)
        for site in sites[:3]:
            await anna.put_relay(anna.key_item(site.name))
        async with world.refused(LimitError, "the limit max_stored of PutRelay is"):
            await anna.put_relay(anna.key_item(sites[3].name))


async def test_a_site_that_sends_bad_models_keeps_nobody_from_a_good_one(
    world: Any, updates: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.running(world.folder) as address:
        sites = await world.planned(address)
        anna, mallory, cora, dora = sites
        await world.each(site.contribute(1, updates[i][1]) for i, site in enumerate(sites))
        await anna.until(lambda s: s.phase == pb.PHASE_RELEASE)
        await world.each(site.report(1, b"\x07" * 32) for site in (anna, mallory, cora))
        item = {"kind": round_pb2.RelayItem.KIND_MODEL, "round": 1, "content_digest": b"\x07" * 32}
        wanted = pb.RequestModelRequest(study="trial", round=0)
        fetch = pb.GetRelayRequest(study="trial", kind=2)
        await anna.stub.RequestModel(wanted)
        await mallory.put_relay(mallory.key_item("anna", content=b"bad", **item))
        assert [one async for one in anna.stub.GetRelay(fetch)]
        await anna.stub.RequestModel(wanted)
        async with world.refused(LateError, "no good model before"):
            await mallory.put_relay(mallory.key_item("anna", content=b"worse", **item))
        # Another one sends a byte and then nothing.
        stop = asyncio.Event()

        async def slowly() -> AsyncIterator[pb.RelayMessage]:
            yield dora.key_item("anna", **item)[0]
            await stop.wait()

        slow = asyncio.ensure_future(dora.stub.PutRelay(slowly()))
        await asyncio.sleep(0.3)
        async with world.refused(LateError, "by another site"):
            await cora.put_relay(cora.key_item("anna", **item))
        monkeypatch.setattr(relay, "TURN_SECONDS", 0.1)
        await cora.put_relay(cora.key_item("anna", **item))
        got = [one async for one in anna.stub.GetRelay(fetch)]
        assert round_pb2.RelayItem.FromString(got[0].item.payload).sender == "cora"
        stop.set()
        async with world.refused(FormatError, ""):
            await slow


async def test_who_is_revoked_while_sending_is_cut_off(world: Any, updates: Any) -> None:
    async with world.running(world.folder) as address:
        *_, dora = await world.planned(address)
        header, chunks = await dora.header(1), updates[3][1]
        revoked = asyncio.Event()

        async def messages() -> AsyncIterator[pb.UploadMessage]:
            first, second, *rest = dora.messages(header, chunks)
            yield first
            yield second
            await revoked.wait()
            for message in rest:
                yield message

        upload = asyncio.ensure_future(dora.stub.Upload(messages()))
        await asyncio.sleep(0.2)
        member_files.write_status(world.folder, world.consortium.revoke(world.members[3]))
        for _ in range(100):
            try:
                await dora.record(1, pb.RECORD_KIND_PLAN)
            except grpc.RpcError:
                break
            await asyncio.sleep(0.1)
        await asyncio.sleep(dispatch.RECHECK_SECONDS)
        revoked.set()
        async with world.refused(IdentityError, "revoked"):
            await upload


async def test_connections_and_handshakes(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from cipherward.coordinator.api import service

    changed = {"grpc.max_allowed_incoming_connections": 3, "grpc.server_handshake_timeout_ms": 700}
    options = tuple((key, changed.get(key, value)) for key, value in service.OPTIONS)
    assert {key for key, _ in service.OPTIONS} >= changed.keys()
    monkeypatch.setattr(service, "OPTIONS", options)
    async with world.running(world.folder) as address:
        host, _, port = address.rpartition(":")
        with contextlib.ExitStack() as stack:
            quiet = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(6)]

            def closed() -> int:
                count = 0
                for one in quiet:
                    one.settimeout(0.05)
                    with contextlib.suppress(TimeoutError, ConnectionError):
                        count += one.recv(100) == b""
                return count

            await asyncio.sleep(0.2)
            assert await asyncio.to_thread(closed) >= 3, "the fourth and further ones are closed at once"
            await asyncio.sleep(1.0)
            assert await asyncio.to_thread(closed) == 6, "nobody waits for a handshake for ever"
        caller = callers(world, address)[Role.SITE]
        code, _ = await once(caller, "Hello", pb.HelloRequest(protocol=1).SerializeToString())
        assert code is grpc.StatusCode.OK


async def test_limits_on_calls_of_a_study(world: Any) -> None:
    """As a site meets them."""
    async with world.running(world.folder) as address:
        anna, *_ = await world.started(address)
        async with world.refused(LimitError, "the limit per_second of Hello is 2"):
            for _ in range(40):
                await anna.stub.Hello(pb.HelloRequest(protocol=1))
        streams = [anna.stub.WatchWork(pb.WatchWorkRequest()) for _ in range(8)]
        for stream in streams:
            await stream.read()
        async with world.refused(LimitError, "the limit open_calls of WatchWork is 8"):
            await anna.snapshot()


def test_a_row_has_what_its_rpc_needs() -> None:
    for rpc, method in RPCS.items():
        row: Policy = POLICIES[rpc]
        assert row.per_second > 0 and row.burst >= 1 and row.open_calls >= 1 and row.idle_seconds > 0
        if method.client_streaming:
            assert row.max_total and row.max_seconds, rpc
        else:
            assert row.max_total is None, rpc


async def test_an_upload_that_stalls_keeps_what_came_whole(world: Any, updates: Any, rows: Any) -> None:
    async with world.running(world.folder) as address:
        anna, *_ = await world.planned(address)
        header, chunks = await anna.header(1), updates[0][1]
        rows(idle_seconds=0.5)

        async def stalling() -> AsyncIterator[pb.UploadMessage]:
            for message in anna.messages(header, chunks[:2]):
                yield message
            await asyncio.sleep(PROBE_SECONDS)

        async with world.refused(LimitError, "the limit idle_seconds of Upload is 0.5"):
            await anna.stub.Upload(stalling())
        assert (await anna.stub.GetUploadState(header)).chunks_stored == 2
        await anna.send("Upload", anna.messages(header, chunks, 2))
        await anna.commit(1, chunks)


async def test_slow_uploads_do_not_keep_others_waiting(
    world: Any, updates: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All fast places are taken by senders that stall, and they are not cut off for it yet."""
    monkeypatch.setattr(admission, "FAST_PLACES", 3)
    monkeypatch.setattr(admission, "PATIENCE_SECONDS", 0.3)
    async with world.running(world.folder) as address:
        *slow, dora = await world.planned(address)
        stop = asyncio.Event()

        async def stalling(site: Any, header: Any, chunks: list[bytes]) -> AsyncIterator[pb.UploadMessage]:
            for message in site.messages(header, chunks[:1]):
                yield message
            await stop.wait()
            for message in list(site.messages(header, chunks, 1))[1:]:
                yield message

        uploads = [
            asyncio.ensure_future(_uploaded(site, stalling(site, await site.header(1), updates[i][1])))
            for i, site in enumerate(slow)
        ]
        await asyncio.sleep(0.2)
        began = time.monotonic()
        await dora.contribute(1, updates[3][1])
        assert time.monotonic() - began < 3
        assert not any(upload.done() for upload in uploads)
        stop.set()
        for upload, (_, chunks) in zip(uploads, updates, strict=False):
            assert (await upload).chunks_stored == len(chunks)


async def _uploaded(site: Any, messages: AsyncIterator[pb.UploadMessage]) -> Any:
    return await site.stub.Upload(messages)
