"""The quorum suite's steps over real gRPC with mutual TLS, to the acknowledgements: what members of a round may rely
on, and what is refused."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import numpy as np
import pytest
from kit_quorum import MODEL, NAMES, each, fields_of, sealed, signer, started, stored_blobs, to_phase

from cipherward.crypto.labels import Label
from cipherward.crypto.merkle import leaf_hash, root
from cipherward.crypto.quorum_records import (
    ENCRYPTED_VECTOR_BYTES,
    SEALED_SHARE_BYTES,
    check_answer_key,
    check_share,
    check_update_chunk,
    coverage,
    sealed_root,
    verify_sum_check,
)
from cipherward.crypto.records import verify_close
from cipherward.crypto.signing import record_digest
from cipherward.crypto.transcript import transcript_start
from cipherward.errors import (
    ConflictError,
    FormatError,
    LateError,
    ProtocolError,
    VerificationError,
)
from cipherward.proto.v1 import coordinator_pb2 as pb
from cipherward.proto.v1 import round_pb2
from cipherward.proto.v1.common_pb2 import Signed


async def test_a_whole_round(world: Any) -> None:
    async with world.running(world.folder) as address:
        members = await started(world, address)
        anna, bert, cora, dora = members
        trust = anna.trust
        await to_phase(members, pb.PHASE_ACKNOWLEDGE)
        plan = await anna.plan(1)
        assert plan.threshold == 3 and plan.members == NAMES
        for place, member in enumerate(members):
            got = await member.fetch("GetShares", 1)
            assert [one.sealed for one in got] == [dealer.shares[place] for dealer in members]
            assert [check_share(one, trust, plan, member.name).site for one in got] == list(NAMES)
            with pytest.raises(VerificationError):
                check_share(got[0], trust, plan, NAMES[place - 1])
        await each(member.acknowledge(1) for member in members)
        await anna.site.until(lambda s: s.phase == pb.PHASE_UNSEAL)

        closed = await anna.site.record(1, pb.RECORD_KIND_CLOSE)
        close = verify_close(closed, trust, plan, transcript_start("trial", trust.digest))
        digest = record_digest(Label.CLOSE_RECORD, closed)
        total = await bert.site.fetch_sum(1)
        assert root([leaf_hash(chunk) for chunk in total]) == close.sum_root
        for index, chunk in enumerate(total):
            expected = sum(one.residues[index] for one in members) % anna.params.modulus
            np.testing.assert_array_equal(np.frombuffer(chunk, "<u4"), expected.astype("<u4"))

        await each(member.answer(1) for member in members)
        await anna.site.until(lambda s: s.phase == pb.PHASE_RELEASE)
        for place, member in enumerate(members):
            answers = await member.fetch("GetAnswers", 1)
            assert [one.sealed_key for one in answers] == [other.keys[place] for other in members]
            names = [check_answer_key(one, trust, plan, digest, member.name).site for one in answers]
            assert names == list(NAMES)

        last = len(total) - 1
        chunks = await cora.update_chunks(1, 0, last)
        assert [(one.index, one.site) for one in chunks] == [(i, n) for i in (0, last) for n in NAMES]
        for chunk, contribution in zip(chunks, [*close.contributions] * 2, strict=True):
            check_update_chunk(chunk, close, contribution)
        assert [one.data for one in chunks[:4]] == [one.chunks[0] for one in members]
        others = await cora.update_chunks(1, 0, last, without_own=True)
        assert others == [one for one in chunks if one.site != "cora"]
        await each([anna.check(1, range(last + 1)), bert.check(1, [0]), cora.check(1, [1, 2], [0])])
        await bert.check(1, range(last))
        signed = await dora.fetch("GetSumChecks", 1)
        checks = {
            name: verify_sum_check(one, trust, plan, digest, last + 1, name)
            for name, one in zip(NAMES[:3], signed, strict=True)
        }
        assert coverage(checks, 1, last + 1).missing == (last,)
        await dora.check(1, [last])

        await each(member.site.report(1, MODEL) for member in members)
        await anna.site.until(lambda s: s.round == 2)
        status = await world.operator(address).status()
        assert list(status.history[0].contributors) == list(NAMES)
        up = 4 * (sum(map(len, anna.chunks)) + 4 * SEALED_SHARE_BYTES + ENCRYPTED_VECTOR_BYTES)
        assert up < status.history[0].bytes_up < 1.1 * up
        for rpc in ("GetShares", "GetAnswers", "GetSumChecks"):
            async with world.refused(LateError, "came late"):
                await anna.fetch(rpc, 1)
        async with world.refused(LateError):
            await anna.update_chunks(1, 0)
        await asyncio.sleep(0.2)
        left = stored_blobs(world.folder)
        assert len(left) == 6, "the weights, the sum and its four updates are left"


async def test_shares_follow_the_chunks_and_resume(world: Any) -> None:
    async with world.running(world.folder) as address:
        members = await started(world, address)
        await each(member.join(1) for member in members)
        anna = members[0]
        header, count = await anna.site.header(1), len(anna.chunks)
        anna.shares = sealed(4)

        async def refuse(kind: Any, text: str, *messages: pb.UploadMessage) -> None:
            async with world.refused(kind, text):
                await anna.site.send("Upload", [pb.UploadMessage(header=header), *messages])

        def share(index: int, data: bytes = anna.shares[0], **more: Any) -> pb.UploadMessage:
            return pb.UploadMessage(share=pb.ShareMessage(sealed=data, index=index, **more))

        await refuse(ProtocolError, "chunks are missing", share(0))
        assert (await anna.upload(1, until=0)).chunks_stored == count
        await refuse(ProtocolError, "expected", share(1))
        await refuse(FormatError, "must have", share(0, bytes(SEALED_SHARE_BYTES - 1)))
        await refuse(FormatError, "without proof", share(0, inclusion=[bytes(32)]))
        mixed = share(0)
        mixed.data = b"x"
        await refuse(FormatError, "something else", mixed)
        chunk = pb.UploadMessage(index=count, data=anna.chunks[0], leaf_hash=leaf_hash(anna.chunks[0]))
        await refuse(FormatError, "has 4 chunks", chunk)
        await refuse(FormatError, "something else", share(0), chunk)
        await refuse(FormatError, "4 shares", *(share(index) for index in range(5)))
        async with world.refused(ProtocolError, "0 of 4 shares"):
            await anna.commit(1)
        assert (await anna.upload(1, chunks=count, until=3)).shares_stored == 3
        state = await anna.stub.GetUploadState(header)
        assert (state.chunks_stored, state.shares_stored) == (count, 3)
        async with world.refused(ProtocolError, "3 of 4 shares"):
            await anna.commit(1)
        assert (await anna.upload(1, chunks=count, shares=3)).shares_stored == 4

        # A new attempt throws the old one's shares away with its chunks.
        state = await anna.upload(1, attempt=2, until=1)
        assert (state.chunks_stored, state.shares_stored) == (count, 1)
        state = await anna.stub.GetUploadState(header)
        assert (state.chunks_stored, state.shares_stored) == (0, 0)
        async with world.refused(ConflictError, "attempt 2"):
            await anna.upload(1)


async def test_a_commit_stands_for_exactly_the_uploaded_shares(world: Any) -> None:
    async with world.running(world.folder) as address:
        members = await started(world, address)
        await each(member.join(1) for member in members)
        anna = members[0]
        await anna.upload(1)
        swapped = [anna.shares[1], anna.shares[0], *anna.shares[2:]]
        for wrong in (swapped, [*anna.shares[:3], os.urandom(SEALED_SHARE_BYTES)], anna.shares[:3]):
            async with world.refused(VerificationError, "other shares"):
                await anna.commit(1, share_root=sealed_root(wrong))
        async with world.refused(VerificationError, "share root"):
            await anna.commit(1, share_root=b"")
        await anna.commit(1)
        async with world.refused(ProtocolError, "too early"):
            await anna.fetch("GetShares", 1)


async def test_joins_need_a_round_key_of_the_right_size(world: Any) -> None:
    async with world.running(world.folder) as address:
        anna, *_ = await started(world, address)
        for size in (0, 1215, 1217):
            record = await anna.site.join_record(1, shared_key_digest=b"", round_key=bytes(size))
            async with world.refused(VerificationError, "round key"):
                await anna.post("PostJoin", record)


async def test_acknowledgements(world: Any) -> None:
    async with world.running(world.folder) as address:
        members = await started(world, address)
        anna, bert, *_ = members
        await to_phase(members, pb.PHASE_UPLOAD)
        async with world.refused(ProtocolError, "too early"):
            await anna.acknowledge(1)
        await each(member.contribute(1) for member in members)
        for changes, kind in (
            ({"plan_digest": bytes(32)}, VerificationError),
            ({"manifest_digest": bytes(32)}, VerificationError),
            ({"site": "bert"}, VerificationError),
            ({"round": 2}, ProtocolError),
            ({"dealers": NAMES[:3]}, VerificationError),
            ({"dealers": (*NAMES, "dora")}, VerificationError),
            ({"dealers": (*NAMES, "mallory")}, VerificationError),
        ):
            async with world.refused(kind):
                await anna.post("PostAcknowledgement", await anna.acknowledgement(1, **changes))
        other_attempt = round_pb2.Acknowledgement.FromString((await anna.acknowledgement(1)).payload)
        other_attempt.opened[2].attempt = 2
        async with world.refused(VerificationError, "dealt"):
            await anna.post("PostAcknowledgement", anna.site.sign(Label.ACKNOWLEDGEMENT, other_attempt))
        for _ in range(2):
            await anna.acknowledge(1, bad="dora")
        async with world.refused(ConflictError, "another acknowledgement"):
            await anna.acknowledge(1)
        status = await world.operator(address).status()
        assert [site.step for site in status.sites] == ["acknowledged", *["committed"] * 3]
        record = await anna.acknowledgement(1)
        async with world.refused(VerificationError):  # somebody else's record, signed by anna
            await bert.post("PostAcknowledgement", Signed(**{**fields_of(record), "signer": signer(bert)}))
        await each(member.acknowledge(1) for member in members[1:])
        # One complaint excludes nobody, and who complained cannot answer for what it could not open.
        await anna.site.until(lambda s: s.phase == pb.PHASE_UNSEAL)
        async with world.refused(ProtocolError, "could not open"):
            await anna.answer(1)
        await each(member.answer(1) for member in members[1:])
        await anna.site.until(lambda s: s.phase == pb.PHASE_RELEASE)
