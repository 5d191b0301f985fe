"""Uploads, commits and reports over real gRPC with mutual TLS: what counts, what resumes, what is refused."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import grpc
import numpy as np
import pytest
from kit_process import inspectors

from cipherward.crypto.labels import Label
from cipherward.crypto.merkle import leaf_hash
from cipherward.errors import (
    ConflictError,
    FormatError,
    LateError,
    NotFoundError,
    ProtocolError,
    UnavailableError,
    VerificationError,
)
from cipherward.proto.v1 import coordinator_pb2 as pb
from cipherward.proto.v1 import round_pb2, study_pb2

MODEL = b"\x07" * 32


async def test_uploads_resume_and_are_checked(world: Any, updates: Any) -> None:
    async with world.running(world.folder) as address:
        anna, *_ = await world.planned(address)
        chunks = updates[0][1]
        assert len(chunks) >= 3
        header = await anna.header(1)
        assert (await anna.send("Upload", anna.messages(header, chunks[:1]))).chunks_stored == 1
        assert (await anna.stub.GetUploadState(header)).chunks_stored == 1
        async with world.refused(ProtocolError, "expected"):
            await anna.send("Upload", anna.messages(header, chunks))
        for position, data in (
            (0, chunks[1][:-1]),  # truncated
            (1, bytes(len(chunks[1]))),  # not a ciphertext
        ):
            bad = pb.UploadMessage(index=1, data=data, leaf_hash=leaf_hash(data))
            async with world.refused(FormatError):
                await anna.send("Upload", iter([pb.UploadMessage(header=header), bad]))
            assert position < 2
        wrong_hash = pb.UploadMessage(index=1, data=chunks[1], leaf_hash=leaf_hash(chunks[0]))
        async with world.refused(FormatError, "digest"):
            await anna.send("Upload", iter([pb.UploadMessage(header=header), wrong_hash]))
        async with world.refused(FormatError, "header"):
            await anna.send("Upload", iter([pb.UploadMessage(index=1, data=chunks[1])]))
        too_many = [*chunks, chunks[0]]
        async with world.refused(FormatError, "chunks"):
            await anna.send("Upload", anna.messages(header, too_many, 1))
        record = await anna.commit_record(1, chunks)
        async with world.refused(ProtocolError, "uploaded"):
            await anna.stub.PostCommit(pb.PostRequest(study="trial", record=record))
        stored = (await anna.stub.GetUploadState(header)).chunks_stored
        assert (await anna.send("Upload", anna.messages(header, chunks, stored))).chunks_stored == len(chunks)
        await anna.stub.PostCommit(pb.PostRequest(study="trial", record=record))


async def test_no_bit_that_flips_on_the_way_is_taken(world: Any, updates: Any) -> None:
    """28 of 40 opened to garbage without an error in NVIDIA FLARE 2.9.0 (2026)."""
    async with world.running(world.folder) as address:
        sites, chunk = await world.planned(address), updates[0][1][0]
        places = np.random.default_rng(28).choice(8 * len(chunk), 40, replace=False).tolist()
        for site, some in zip(sites, (places[:10], places[10:20], places[20:30], places[30:]), strict=True):
            header = await site.header(1)
            for place in some:
                flipped = bytearray(chunk)
                flipped[place // 8] ^= 1 << place % 8
                message = pb.UploadMessage(index=0, data=bytes(flipped), leaf_hash=leaf_hash(chunk))
                async with world.refused(FormatError, "damaged"):
                    await site.send("Upload", iter([pb.UploadMessage(header=header), message]))
            assert (await site.stub.GetUploadState(header)).chunks_stored == 0
            assert await site.upload(1, updates[0][1]) == len(updates[0][1])


async def test_the_process_that_checks_uploads_may_die(world: Any, updates: Any) -> None:
    async with world.running(world.folder) as address:
        anna, bert, *_ = await world.planned(address)
        chunks = updates[1][1]
        await anna.contribute(1, updates[0][1])
        [inspector] = inspectors()
        os.kill(inspector, signal.SIGSTOP)
        upload = asyncio.create_task(bert.upload(1, chunks))
        await asyncio.sleep(1)
        assert not upload.done(), "nothing is stored that was not checked"
        os.kill(inspector, signal.SIGKILL)
        async with world.refused(UnavailableError, "worker process failed"):
            await upload
        assert (await bert.stub.GetUploadState(await bert.header(1))).chunks_stored == 0
        assert await bert.upload(1, chunks) == len(chunks)
        [successor] = inspectors()
        assert successor != inspector
    assert not inspectors()


async def test_a_broken_upload_keeps_what_came_whole(world: Any, updates: Any) -> None:
    async with world.running(world.folder) as address:
        anna, *_ = await world.planned(address)
        header, chunks = await anna.header(1), updates[0][1]
        sent = asyncio.Event()

        async def broken() -> Any:
            for message in anna.messages(header, chunks[:2]):
                yield message
            sent.set()
            await asyncio.sleep(60)

        call = anna.stub.Upload(broken())
        await sent.wait()
        await asyncio.sleep(0.3)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        for _ in range(50):
            if (await anna.stub.GetUploadState(header)).chunks_stored == 2:
                break
            await asyncio.sleep(0.1)
        else:
            raise AssertionError("chunks that came whole were lost")
        assert (await anna.send("Upload", anna.messages(header, chunks, 2))).chunks_stored == len(chunks)


async def test_a_newer_upload_takes_over_from_a_dead_one(world: Any, updates: Any) -> None:
    async with world.running(world.folder) as address:
        anna, *_ = await world.planned(address)
        header, chunks = await anna.header(1), updates[0][1]

        async def hanging() -> Any:
            yield pb.UploadMessage(header=header)
            await asyncio.sleep(60)

        dead = asyncio.ensure_future(anna.stub.Upload(hanging()))
        await asyncio.sleep(0.3)
        assert await asyncio.wait_for(anna.upload(1, chunks), 10) == len(chunks)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await dead
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_attempts(world: Any, updates: Any) -> None:
    async with world.running(world.folder) as address:
        anna, *_ = await world.planned(address)
        chunks = updates[0][1]
        await anna.upload(1, updates[1][1], attempt=1)
        await anna.upload(1, chunks[:1], attempt=2)
        async with world.refused(ConflictError, "attempt 2"):
            await anna.upload(1, chunks, attempt=1)
        header = await anna.header(1, attempt=2)
        await anna.send("Upload", anna.messages(header, chunks, 1))
        await anna.commit(1, chunks, attempt=2)
        async with world.refused(ConflictError, "committed attempt 2"):
            await anna.upload(1, chunks, attempt=3)
        assert (await anna.send("Upload", anna.messages(header, [], 0))).chunks_stored == len(chunks)


async def test_commits(world: Any, updates: Any) -> None:
    async with world.running(world.folder) as address:
        anna, bert, *_ = await world.planned(address)
        chunks = updates[0][1]
        await anna.upload(1, chunks)
        for changes in (
            {"ciphertext_root": b"\x00" * 32},
            {"length": 5},
            {"chunk_count": len(chunks) + 1},
            {"plan_digest": b"\x00" * 32},
            {"site": "bert"},
        ):
            record = await anna.commit_record(1, chunks, **changes)
            async with world.refused(VerificationError):
                await anna.stub.PostCommit(pb.PostRequest(study="trial", record=record))
        async with world.refused(NotFoundError):
            await anna.record(1, pb.RECORD_KIND_COMMIT)
        record = await anna.commit(1, chunks)
        await anna.stub.PostCommit(pb.PostRequest(study="trial", record=record))
        assert await anna.record(0, pb.RECORD_KIND_COMMIT) == record
        async with world.refused(NotFoundError):
            await bert.record(1, pb.RECORD_KIND_COMMIT)
        other = await anna.commit_record(1, chunks, ledger_sequence=99)
        async with world.refused(ConflictError):
            await anna.stub.PostCommit(pb.PostRequest(study="trial", record=other))


async def test_a_late_commit_is_refused_and_an_update_never_counts_later(world: Any, updates: Any) -> None:
    async with world.running(world.folder) as address:
        limits = study_pb2.Deadlines(join_window=60, upload=1, verify=60)
        *early, late = await world.planned(address, deadlines=limits)
        await late.upload(1, updates[3][1])
        record = await late.commit_record(1, updates[3][1])
        await world.each(site.contribute(1, updates[i][1]) for i, site in enumerate(early))
        await late.until(lambda s: s.phase == pb.PHASE_RELEASE)
        async with world.refused(LateError, "CW-520"):
            await late.stub.PostCommit(pb.PostRequest(study="trial", record=record))
        async with world.refused(LateError):
            await late.upload(1, updates[3][1])
        await late.report(1, MODEL)
        await world.each(site.report(1, MODEL) for site in early)
        await late.until(lambda s: s.round == 2 and s.phase == pb.PHASE_OPEN)
        await early[0].report(1, MODEL)  # again, after all was decided
        async with world.refused(LateError):
            await late.stub.PostCommit(pb.PostRequest(study="trial", record=record))
        status = await world.operator(address).status()
        assert list(status.history[0].contributors) == [site.name for site in early]


async def test_reports_are_bound_to_the_close(world: Any, updates: Any) -> None:
    async with world.running(world.folder) as address:
        sites = await world.planned(address)
        anna = sites[0]
        async with world.refused(NotFoundError):
            await anna.report(1, MODEL)
        async with world.refused(ProtocolError, "not closed"):
            await anna.fetch_sum(1)
        await world.each(site.contribute(1, updates[i][1]) for i, site in enumerate(sites))
        await anna.until(lambda s: s.phase == pb.PHASE_RELEASE)
        report = round_pb2.ModelReport(
            manifest_digest=anna.trust.digest,
            close_digest=b"\x00" * 32,
            round=1,
            site="anna",
            model_digest=MODEL,
        )
        async with world.refused(VerificationError, "another close"):
            record = anna.sign(Label.MODEL_REPORT, report)
            await anna.stub.PostModelReport(pb.PostRequest(study="trial", record=record))
