"""The quorum suite's steps over real gRPC with mutual TLS: what members of a round may rely on, and what is
refused. Seals are random bytes of the right size: the coordinator can look into none of them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from cipherward.crypto.labels import Label
from cipherward.crypto.merkle import leaf_hash, root
from cipherward.crypto.quorum_records import (
    ENCRYPTED_VECTOR_BYTES,
    SEALED_KEY_BYTES,
    SEALED_SHARE_BYTES,
    check_answer_key,
    check_share,
    check_update_chunk,
    coverage,
    sealed_root,
    verify_sum_check,
)
from cipherward.crypto.records import verify_close, verify_plan, verify_round_record
from cipherward.crypto.sealing import SealingKey
from cipherward.crypto.signing import record_digest
from cipherward.crypto.suites.registry import suite
from cipherward.crypto.transcript import model_digest, transcript_next, transcript_start
from cipherward.errors import (
    ConflictError,
    FormatError,
    IdentityError,
    LateError,
    LimitError,
    ProtocolError,
    VerificationError,
)
from cipherward.ids import Role
from cipherward.proto.v1 import coordinator_pb2 as pb
from cipherward.proto.v1 import round_pb2, study_pb2
from cipherward.proto.v1.common_pb2 import Signed

BOUND, MODEL = 4.0, b"\x07" * 32
NAMES = ("anna", "bert", "cora", "dora")


async def each(calls: Any) -> list[Any]:
    return list(await asyncio.gather(*calls))


def sealed(count: int, size: int = SEALED_SHARE_BYTES) -> list[bytes]:
    return [os.urandom(size) for _ in range(count)]


class Member:
    """A site of a quorum study, and what it has dealt."""

    def __init__(self, site: Any, seed: int) -> None:
        self.site, self.name, self.stub, self.trust = site, site.name, site.stub, site.trust
        self.params = site.trust.params
        # Chunks of residues below q, as a suite makes them.
        self.residues, generator = [], np.random.default_rng(seed)
        for index in range(self.params.chunk_count(site.length)):
            size = self.params.upload_chunk_bytes(index, site.length) // 4
            self.residues.append(generator.integers(0, self.params.modulus, size, dtype=np.uint64))
        self.chunks = [one.astype("<u4").tobytes() for one in self.residues]
        self.shares: list[bytes] = []
        self.keys: list[bytes] = []

    async def post(self, rpc: str, record: Signed, **more: Any) -> None:
        kind = pb.PostAnswerRequest if rpc == "PostAnswer" else pb.PostRequest
        await getattr(self.stub, rpc)(kind(study="trial", record=record, **more))

    async def join(self, number: int) -> None:
        key = SealingKey.generate().public()
        record = await self.site.join_record(number, shared_key_digest=b"", round_key=key)
        await self.post("PostJoin", record)

    def messages(
        self, header: pb.UploadHeader, chunks: int = 0, shares: int = 0, until: int | None = None
    ) -> Iterator[pb.UploadMessage]:
        """Everything behind so many chunks and shares, to the share ``until``."""
        yield from self.site.messages(header, self.chunks, chunks)
        for index in range(shares, len(self.shares) if until is None else until):
            yield pb.UploadMessage(share=pb.ShareMessage(sealed=self.shares[index], index=index))

    async def upload(self, number: int, members: int = 4, attempt: int = 1, **part: Any) -> pb.UploadState:
        self.shares = self.shares or sealed(members)
        header = await self.site.header(number, attempt)
        return await self.site.send("Upload", self.messages(header, **part))

    async def commit(self, number: int, **changes: Any) -> Signed:
        changes = {"share_root": sealed_root(self.shares), **changes}
        record = await self.site.commit_record(number, self.chunks, **changes)
        await self.post("PostCommit", record)
        return record

    async def contribute(self, number: int, members: int = 4) -> None:
        self.shares = sealed(members)
        state = await self.upload(number)
        assert (state.chunks_stored, state.shares_stored) == (len(self.chunks), members)
        await self.commit(number)

    async def plan(self, number: int) -> Any:
        opened = await self.site.record(number, pb.RECORD_KIND_ROUND)
        digest = record_digest(Label.ROUND_RECORD, opened)
        return verify_plan(await self.site.record(number, pb.RECORD_KIND_PLAN), self.trust, digest, number)

    async def acknowledgement(
        self, number: int, bad: str = "", dealers: Any = NAMES, **changes: Any
    ) -> Signed:
        record = round_pb2.Acknowledgement(
            manifest_digest=self.trust.digest,
            plan_digest=(await self.plan(number)).digest,
            round=number,
            site=self.name,
            opened=[round_pb2.Attempt(site=site, attempt=1) for site in dealers if site != bad],
            unopenable=[round_pb2.Attempt(site=site, attempt=1) for site in dealers if site == bad],
        )
        for field, value in changes.items():
            setattr(record, field, value)
        return self.site.sign(Label.ACKNOWLEDGEMENT, record)

    async def acknowledge(self, number: int, bad: str = "", dealers: Any = NAMES) -> None:
        await self.post("PostAcknowledgement", await self.acknowledgement(number, bad, dealers))

    async def bound(self, number: int) -> dict[str, Any]:
        """The fields that an answer or a sum check names its round by."""
        closed = await self.site.record(number, pb.RECORD_KIND_CLOSE)
        return {
            "manifest_digest": self.trust.digest,
            "close_digest": record_digest(Label.CLOSE_RECORD, closed),
            "round": number,
            "site": self.name,
        }

    async def answer_record(self, number: int, members: int = 4, **changes: Any) -> Signed:
        self.keys = sealed(members, SEALED_KEY_BYTES)
        answer = round_pb2.Answer(
            **await self.bound(number),
            plan_digest=(await self.plan(number)).digest,
            encrypted_vector=os.urandom(ENCRYPTED_VECTOR_BYTES),
            key_root=sealed_root(self.keys),
        )
        for field, value in changes.items():
            setattr(answer, field, value)
        return self.site.sign(Label.ANSWER, answer)

    async def answer(self, number: int, members: int = 4) -> None:
        await self.post("PostAnswer", await self.answer_record(number, members), sealed_keys=self.keys)

    async def check(self, number: int, right: Any, wrong: Any = ()) -> None:
        record = round_pb2.SumCheck(**await self.bound(number), right=right, wrong=wrong)
        await self.post("PostSumCheck", self.site.sign(Label.SUM_CHECK, record))

    async def fetch(self, rpc: str, number: int) -> list[Any]:
        stream = getattr(self.stub, rpc)(pb.GetRecordRequest(study="trial", round=number))
        return [one async for one in stream]

    async def update_chunks(self, number: int, *indices: int) -> list[pb.DataChunk]:
        request = pb.GetUpdateChunksRequest(study="trial", round=number, indices=indices)
        return [one async for one in self.stub.GetUpdateChunks(request)]


async def started(world: Any, address: str, **changes: Any) -> list[Member]:
    """A quorum study: round 1 is open."""
    params = suite("quorum").parameters("q32", BOUND, len(world.members))
    entry = study_pb2.SuiteEntry(name="quorum", parameters="q32", library=params.library, bound=BOUND)
    deadlines = study_pb2.Deadlines(join_window=60, upload=60, acknowledge=60, unseal=60, verify=60)
    numbers = {"minimum_cohort": 3, "threshold": 3, "colluders": 1, "collective_verification": True}
    fields = {"suite": entry, "deadlines": deadlines, **numbers, **changes}
    signed, trust = world.manifest(**fields)
    await world.operator(address).start(signed, world.weights)
    return [Member(site, seed) for seed, site in enumerate(world.sites(address, trust))]


async def to_phase(members: list[Member], phase: int, number: int = 1) -> None:
    """Everybody does its part until the round is there."""
    for reached, act in (
        (pb.PHASE_UPLOAD, lambda one: one.join(number)),
        (pb.PHASE_ACKNOWLEDGE, lambda one: one.contribute(number)),
        (pb.PHASE_UNSEAL, lambda one: one.acknowledge(number)),
        (pb.PHASE_RELEASE, lambda one: one.answer(number)),
    ):
        await each(act(one) for one in members)
        await members[0].site.until(lambda s, reached=reached: s.phase == reached)
        if reached == phase:
            return


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
        left = [path for path in (world.folder / "blobs").rglob("*") if path.is_file()]
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


def fields_of(record: Signed) -> dict[str, Any]:
    return {"payload": record.payload, "signature": record.signature}


def signer(member: Member) -> str:
    return str(member.site.member.identity)


async def test_a_dealer_that_most_complain_of_is_left_out(world: Any) -> None:
    async with world.running(world.folder) as address:
        members = await started(world, address)
        await to_phase(members, pb.PHASE_ACKNOWLEDGE)
        await each(member.acknowledge(1, bad="bert") for member in members)
        await members[0].site.until(lambda s: s.phase == pb.PHASE_UNSEAL)
        assert {one.site for one in await members[1].update_chunks(1, 0)} == {"anna", "cora", "dora"}


async def test_answers(world: Any) -> None:
    async with world.running(world.folder) as address:
        members = await started(world, address)
        anna, bert, cora, _ = members
        await to_phase(members, pb.PHASE_ACKNOWLEDGE)
        async with world.refused(ProtocolError, "too early"):
            await anna.fetch("GetAnswers", 1)
        await each(member.acknowledge(1) for member in members)
        await anna.site.until(lambda s: s.phase == pb.PHASE_UNSEAL)
        for changes, kind in (
            ({"encrypted_vector": bytes(ENCRYPTED_VECTOR_BYTES - 1)}, FormatError),
            ({"key_root": b""}, VerificationError),
            ({"key_root": bytes(32)}, VerificationError),
            ({"close_digest": bytes(32)}, VerificationError),
            ({"plan_digest": bytes(32)}, VerificationError),
            ({"site": "bert"}, VerificationError),
        ):
            async with world.refused(kind):
                record = await anna.answer_record(1, **changes)
                await anna.post("PostAnswer", record, sealed_keys=anna.keys)
        record = await anna.answer_record(1)
        swapped = [anna.keys[1], anna.keys[0], *anna.keys[2:]]
        for keys, kind in (
            (anna.keys[:3], FormatError),
            ([*anna.keys, anna.keys[0]], FormatError),
            ([*anna.keys[:3], anna.keys[3] + b"x"], FormatError),
            (swapped, VerificationError),
        ):
            async with world.refused(kind):
                await anna.post("PostAnswer", record, sealed_keys=keys)
        async with world.refused(VerificationError):  # an acknowledgement passed off as an answer
            await anna.post("PostAnswer", await anna.acknowledgement(1), sealed_keys=anna.keys)
        assert not await bert.fetch("GetAnswers", 1)
        keys = list(anna.keys)
        for _ in range(2):
            await anna.post("PostAnswer", record, sealed_keys=keys)
        async with world.refused(ConflictError, "another answer"):
            await anna.answer(1)
        (got,) = await bert.fetch("GetAnswers", 1)
        assert got.record == record and got.sealed_key == keys[1]
        await each(member.answer(1) for member in members[1:])
        await anna.site.until(lambda s: s.phase == pb.PHASE_RELEASE)
        assert len(await cora.fetch("GetAnswers", 1)) == 4
        await anna.post("PostAnswer", record, sealed_keys=keys)  # its reply was lost
        stored = [path for path in (world.folder / "blobs").rglob("*") if path.is_file()]
        # Weights, sum, and for each site chunks, shares, keys: nothing of what was refused.
        assert len(stored) == 2 + 3 * 4


async def test_sum_checks_and_chunks_are_for_members_of_a_closed_round(world: Any) -> None:
    async with world.running(world.folder) as address:
        members = await started(world, address, deadlines=study_pb2.Deadlines(
            join_window=1, upload=60, acknowledge=60, unseal=60, verify=60))  # fmt: skip
        anna, *_, dora = members
        await each(member.join(1) for member in members[:3])
        await anna.site.until(lambda s: s.phase == pb.PHASE_UPLOAD)
        await each(member.contribute(1, members=3) for member in members[:3])
        for rpc in ("GetSumChecks", "GetAnswers"):
            async with world.refused(ProtocolError, "too early"):
                await anna.fetch(rpc, 1)
        async with world.refused(ProtocolError, "too early"):
            await anna.update_chunks(1, 0)
        early = round_pb2.SumCheck(manifest_digest=anna.trust.digest, round=1, site="anna")
        async with world.refused(ProtocolError, "not closed"):
            await anna.post("PostSumCheck", anna.site.sign(Label.SUM_CHECK, early))
        for rpc in ("GetShares", "GetSumChecks", "GetAnswers"):
            async with world.refused(ProtocolError, "not in the plan"):
                await dora.fetch(rpc, 1)
        await each(member.acknowledge(1, dealers=NAMES[:3]) for member in members[:3])
        await anna.site.until(lambda s: s.phase == pb.PHASE_UNSEAL)

        count = len(anna.chunks)
        async with world.refused(ProtocolError, "not in the plan"):
            await dora.check(1, [0])
        async with world.refused(ProtocolError, "not in the plan"):
            await dora.update_chunks(1, 0)
        async with world.refused(ProtocolError, "not in the plan"):
            await dora.answer(1, members=3)
        for right, wrong in (((count,), ()), ((1, 0), ()), ((0, 0), ()), ((0,), (0,))):
            async with world.refused(VerificationError):
                await anna.check(1, right, wrong)
        for indices, kind in (
            ((count,), FormatError),
            ((1, 0), FormatError),
            ((0, 0), FormatError),
            (range(1025), LimitError),
        ):
            async with world.refused(kind):
                await anna.update_chunks(1, *indices)
        await anna.check(1, [0], [1])
        await anna.check(1, [0, 1])
        (newest,) = await anna.fetch("GetSumChecks", 1)
        assert list(round_pb2.SumCheck.FromString(newest.payload).right) == [0, 1]
        async with world.refused(ProtocolError, "not open"):
            await anna.fetch("GetShares", 2)


async def test_a_site_that_dies_after_its_commit_costs_seconds(world: Any) -> None:
    async with world.running(world.folder) as address:
        members = await started(world, address)
        anna, *_ = alive = members[:3]
        await to_phase(members, pb.PHASE_ACKNOWLEDGE)
        await each(member.acknowledge(1) for member in alive)
        await anna.site.until(lambda s: s.phase == pb.PHASE_UNSEAL)
        await each(member.answer(1) for member in alive)
        await anna.site.until(lambda s: s.phase == pb.PHASE_RELEASE)
        closed = await anna.site.record(1, pb.RECORD_KIND_CLOSE)
        record = round_pb2.CloseRecord.FromString(closed.payload)
        assert [item.site for item in record.contributions] == list(NAMES), "its update counts"
        assert len(await anna.fetch("GetAnswers", 1)) == 3
        async with world.refused(LateError, "came late"):
            await members[3].answer(1)


async def test_too_few_answers_end_the_round_and_the_next_begins_from_the_old_model(world: Any) -> None:
    async with world.running(world.folder) as address:
        members = await started(world, address, deadlines=study_pb2.Deadlines(
            join_window=60, upload=60, acknowledge=60, unseal=1, verify=60))  # fmt: skip
        anna, bert, *_ = members
        trust = anna.trust
        await to_phase(members, pb.PHASE_UNSEAL)
        await each(member.answer(1) for member in (anna, bert))
        await anna.site.until(lambda s: s.round == 2)
        closed = await anna.site.record(1, pb.RECORD_KIND_CLOSE)
        after = transcript_next(
            transcript_start("trial", trust.digest), record_digest(Label.CLOSE_RECORD, closed)
        )
        opened = verify_round_record(await anna.site.record(2, pb.RECORD_KIND_ROUND), trust, 2)
        assert opened.previous_transcript == after, "the close record stands in the chain"
        assert opened.model_digest == model_digest(world.weights)
        (figures,) = (await world.operator(address).status()).history
        assert (
            figures.aborted and figures.reason == "2 sites answered, the threshold is 3: the sum stays closed"
        )
        assert (figures.round, [*figures.contributors]) == (1, [*NAMES]), (
            "they committed: their updates are spent"
        )
        # Nothing of the round is taken or given any more.
        async with world.refused(LateError):
            await members[2].answer(1)
        async with world.refused(LateError):
            await anna.update_chunks(1, 0)
        # What a site committed cannot be offered again: neither the record nor the attempt's upload.
        async with world.refused(ConflictError):
            await anna.commit(1, ledger_sequence=9)
        async with world.refused(LateError):
            await anna.upload(1)


async def test_a_restart_keeps_shares_acknowledgements_and_answers(world: Any) -> None:
    async with world.running(world.folder) as address:
        members = await started(world, address)
        await to_phase(members, pb.PHASE_ACKNOWLEDGE)
        await each(member.acknowledge(1) for member in members[:2])
    async with world.running(world.folder) as address:
        again = [Member(site, 0) for site in world.sites(address, members[0].trust)]
        got = await again[1].fetch("GetShares", 1)
        assert [one.sealed for one in got] == [dealer.shares[1] for dealer in members]
        await each(member.acknowledge(1) for member in again)
        await again[0].site.until(lambda s: s.phase == pb.PHASE_UNSEAL)
        await each(member.answer(1) for member in again[:2])
    async with world.running(world.folder) as address:
        last = [Member(site, 0) for site in world.sites(address, members[0].trust)]
        assert (await last[0].site.snapshot()).phase == pb.PHASE_UNSEAL
        got = await last[3].fetch("GetAnswers", 1)
        assert [one.sealed_key for one in got] == [member.keys[3] for member in again[:2]]
        await each(member.answer(1) for member in last[2:])
        await last[0].site.until(lambda s: s.phase == pb.PHASE_RELEASE)


async def test_who_is_not_of_the_study_gets_nothing(world: Any) -> None:
    async with world.running(world.folder) as address:
        members = await started(world, address)
        await to_phase(members, pb.PHASE_ACKNOWLEDGE)
        stranger = world.Site(world.consortium.member(Role.SITE, "mallory"), address, members[0].trust)
        mallory = Member(stranger, 9)
        for call in (mallory.fetch("GetShares", 1), mallory.update_chunks(1, 0), mallory.acknowledge(1)):
            async with world.refused(IdentityError, "not on the roster"):
                await call


async def test_two_sites_with_one_round_key_do_not_keep_the_others_waiting(world: Any) -> None:
    async with world.running(world.folder) as address:
        members = await started(world, address)
        anna, bert, *others = members
        key = SealingKey.generate().public()
        await anna.post("PostJoin", await anna.site.join_record(1, shared_key_digest=b"", round_key=key))
        copied = await bert.site.join_record(1, shared_key_digest=b"", round_key=key)
        async with world.refused(VerificationError, "the round key of anna"):
            await bert.post("PostJoin", copied)
        await each(one.join(1) for one in (bert, *others))
        await anna.site.until(lambda s: s.phase == pb.PHASE_UPLOAD)
        assert (await anna.plan(1)).members == NAMES
