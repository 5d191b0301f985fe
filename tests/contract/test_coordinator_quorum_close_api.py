"""The quorum suite's steps over real gRPC with mutual TLS, from the close on: answers, chunks and checks; dropouts,
restarts, strangers."""

from __future__ import annotations

from typing import Any

from kit_quorum import NAMES, Member, each, started, stored_blobs, to_phase

from cipherward.crypto.labels import Label
from cipherward.crypto.quorum_records import (
    ENCRYPTED_VECTOR_BYTES,
)
from cipherward.crypto.records import verify_round_record
from cipherward.crypto.sealing import SealingKey
from cipherward.crypto.signing import record_digest
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
        stored = stored_blobs(world.folder)
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
