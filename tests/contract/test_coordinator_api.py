"""The service over real gRPC with mutual TLS: what sites and operators may rely on, and what is refused."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import numpy as np

from cipherward.crypto.labels import Label
from cipherward.crypto.merkle import leaf_hash, root
from cipherward.crypto.pki import member_files
from cipherward.crypto.records import verify_close, verify_plan, verify_round_record
from cipherward.crypto.signing import record_digest
from cipherward.crypto.transcript import model_digest, transcript_next, transcript_start
from cipherward.errors import (
    ConflictError,
    FormatError,
    IdentityError,
    LateError,
    LimitError,
    NotFoundError,
    ProtocolError,
    VerificationError,
)
from cipherward.ids import Role
from cipherward.proto.v1 import coordinator_pb2 as pb
from cipherward.proto.v1 import round_pb2, study_pb2
from cipherward.proto.v1.common_pb2 import Signed

MODEL = b"\x07" * 32


async def test_a_whole_study(world: Any, cipher: Any, updates: Any) -> None:
    async with world.running(world.folder) as address:
        sites = await world.started(address)
        operator, trust = world.operator(address), sites[0].trust
        previous, model = transcript_start("trial", trust.digest), model_digest(world.weights)
        for number in (1, 2):
            opened = verify_round_record(await sites[0].record(number, pb.RECORD_KIND_ROUND), trust, number)
            assert (opened.model_digest, opened.previous_transcript) == (model, previous)
            await world.each(site.join(number) for site in sites)
            snapshot = await sites[1].until(lambda s: s.phase == pb.PHASE_UPLOAD)
            plan_record = await sites[0].record(number, pb.RECORD_KIND_PLAN)
            plan = verify_plan(plan_record, trust, snapshot.round_record_digest, number)
            assert plan.digest == snapshot.plan_digest and len(plan.joins) == 4
            await world.each(site.contribute(number, updates[i][1]) for i, site in enumerate(sites))
            snapshot = await sites[1].until(lambda s: s.phase == pb.PHASE_RELEASE)
            closed = await sites[2].record(number, pb.RECORD_KIND_CLOSE)
            close = verify_close(closed, trust, plan, previous)
            assert snapshot.close_digest == record_digest(Label.CLOSE_RECORD, closed)
            chunks = await sites[3].fetch_sum(number)
            assert root([leaf_hash(chunk) for chunk in chunks]) == close.sum_root
            assert await sites[3].fetch_sum(number, 1) == chunks[1:]
            total = cipher.open_sum(chunks, sites[0].length, 4)
            np.testing.assert_allclose(
                total, sum(u[0].astype(float) for u in updates), atol=cipher.params.error_bound(4)
            )
            model = bytes([number]) * 32
            previous = transcript_next(previous, record_digest(Label.CLOSE_RECORD, closed))
            await world.each(site.report(number, model) for site in sites)
        snapshot = await sites[0].snapshot()
        assert snapshot.state == pb.STUDY_STATE_FINISHED
        status = await operator.status()
        assert [list(r.contributors) for r in status.history] == [["anna", "bert", "cora", "dora"]] * 2
        size = sum(len(chunk) for chunk in updates[0][1])
        assert 4 * size < status.history[0].bytes_up < 4.2 * size + 20_000
        assert status.history[0].bytes_down > sum(len(chunk) for chunk in chunks)
        assert status.history[0].seconds >= status.history[0].seconds_after_join > 0
        assert {site.step for site in status.sites} == {"reported"}
        reports = sites[0].stub.GetModelReports(pb.GetRecordRequest(study="trial", round=2))
        assert len([one async for one in reports]) == 4
        # Of the last round the updates and the sum are left, of the first nothing.
        await asyncio.sleep(0.2)
        left = [path for path in (world.folder / "blobs").rglob("*") if path.is_file()]
        # 4 keys, the weights, 4 updates, the sum, and the mark that says whose they are
        assert len(left) == 11 and await sites[0].fetch_sum(2)
        async with world.refused(NotFoundError, "any more"):
            await sites[0].fetch_sum(1)


async def test_initial_weights_manifest_and_hello(world: Any) -> None:
    async with world.running(world.folder) as address:
        (anna, *_) = await world.started(address)
        request = pb.GetManifestRequest(study="trial")
        stream = anna.stub.GetInitialWeights(request)
        content = b"".join([chunk.data async for chunk in stream])
        assert content == world.weights.astype("<f4").tobytes()
        assert record_digest(Label.MANIFEST, await anna.stub.GetManifest(request)) == anna.trust.digest
        reply = await anna.stub.Hello(pb.HelloRequest(protocol=1, version="x"))
        assert [study.study for study in reply.studies] == ["trial"]
        assert reply.status_list == await anna.stub.GetStatusList(pb.GetStatusListRequest())
        assert abs(reply.now - time.time()) < 5
        async with world.refused(ProtocolError, "protocol 9"):
            await anna.stub.Hello(pb.HelloRequest(protocol=9))
        async with world.refused(NotFoundError):
            await anna.stub.GetManifest(pb.GetManifestRequest(study="trial", version=7))


async def test_keys_are_relayed_once(world: Any) -> None:
    async with world.running(world.folder) as address:
        signed, trust = world.manifest()
        operator = world.operator(address)
        await operator.start(signed, world.weights)
        anna, bert, *_ = sites = world.sites(address, trust)
        assert list((await anna.snapshot()).keys_wanted_by) == ["anna", "bert", "cora", "dora"]
        assert not (await bert.snapshot()).keys_wanted_by, "only the maker is asked"
        async with world.refused(NotFoundError):
            await anext(aiter(bert.stub.GetRelay(pb.GetRelayRequest(study="trial", kind=1))))
        messages = anna.key_item("bert")
        await anna.put_relay(messages)
        await anna.put_relay(anna.key_item("bert"))  # sealed anew after a lost answer
        got = [one async for one in bert.stub.GetRelay(pb.GetRelayRequest(study="trial", kind=1))]
        assert got == messages, "the first one is kept"
        async with world.refused(ConflictError, "another key"):
            await anna.put_relay(anna.key_item("bert", content_digest=b"\x06" * 32))
        async with world.refused(VerificationError, "another maker"):
            await bert.put_relay(bert.key_item("cora"))
        async with world.refused(IdentityError):
            await anna.put_relay(anna.key_item("mallory"))
        async with world.refused(FormatError, "signed for"):
            await anna.put_relay(anna.key_item("cora", body_root=b"\x00" * 32))
        async with world.refused(LimitError):
            await anna.put_relay(anna.key_item("cora", content_length=2**40))
        async with world.refused(IdentityError, "another sender"):
            await bert.put_relay(anna.key_item("cora"))
        async with world.refused(ProtocolError, "not open yet"):
            record = bert.sign(Label.JOIN, round_pb2.Join(round=1, site="bert"))
            await bert.stub.PostJoin(pb.PostRequest(study="trial", record=record))
        for site in sites:
            await anna.put_relay(anna.key_item(site.name))
        assert (await bert.until(lambda s: s.phase == pb.PHASE_OPEN)).round == 1


async def test_joins(world: Any) -> None:
    async with world.running(world.folder) as address:
        anna, bert, *_ = await world.started(address)
        record = await anna.join_record(1)
        for _ in range(2):
            await anna.stub.PostJoin(pb.PostRequest(study="trial", record=record))
        other = await anna.join_record(1, shared_key_digest=b"\x08" * 32)
        async with world.refused(ConflictError):
            await anna.stub.PostJoin(pb.PostRequest(study="trial", record=other))
        async with world.refused(IdentityError, "own records"):
            await bert.stub.PostJoin(pb.PostRequest(study="trial", record=record))
        forged = Signed(payload=record.payload, signer=str(bert.member.identity), signature=record.signature)
        async with world.refused(VerificationError, "signature"):
            await bert.stub.PostJoin(pb.PostRequest(study="trial", record=forged))
        for changes, kind in (
            ({"library": "tenseal 0.0.1"}, VerificationError),
            ({"manifest_digest": b"\x00" * 32}, VerificationError),
            ({"round": 2}, ProtocolError),
        ):
            wrong = await bert.join_record(1, **changes)
            async with world.refused(kind):
                await bert.stub.PostJoin(pb.PostRequest(study="trial", record=wrong))
        status = await world.operator(address).status()
        assert {site.name: site.step for site in status.sites}["anna"] == "joined"
        assert "CW-500" in {site.name: site.problem for site in status.sites}["bert"]


async def test_a_model_is_relayed_to_who_asks(world: Any, updates: Any) -> None:
    async with world.running(world.folder) as address:
        sites = await world.planned(address)
        anna, bert, cora, _ = sites
        await world.each(site.contribute(1, updates[i][1]) for i, site in enumerate(sites))
        await anna.until(lambda s: s.phase == pb.PHASE_RELEASE)
        await world.each(site.report(1, MODEL) for site in (anna, bert, cora))
        item = {"kind": round_pb2.RelayItem.KIND_MODEL, "round": 1, "content_digest": MODEL}
        async with world.refused(LateError, "wants no model"):
            await bert.put_relay(bert.key_item("anna", **item))
        await anna.stub.RequestModel(pb.RequestModelRequest(study="trial", round=0))
        assert list((await bert.snapshot()).model_wanted_by) == ["anna"]
        assert not (await anna.snapshot()).model_wanted_by
        async with world.refused(LateError, "newest"):
            await bert.put_relay(bert.key_item("anna", **{**item, "round": 0}))
        sent = bert.key_item("anna", **item)
        await bert.put_relay(sent)
        assert not (await bert.snapshot()).model_wanted_by
        request = pb.RequestModelRequest(study="trial", round=0)
        await anna.stub.RequestModel(request)
        assert not (await bert.snapshot()).model_wanted_by, "one is waiting to be fetched"
        got = [one async for one in anna.stub.GetRelay(pb.GetRelayRequest(study="trial", kind=2))]
        assert got == sent
        await anna.stub.RequestModel(request)
        assert (await bert.snapshot()).model_wanted_by, "the one that it fetched was no good"
        await cora.put_relay(cora.key_item("anna", **item))
        got = [one async for one in anna.stub.GetRelay(pb.GetRelayRequest(study="trial", kind=2))]
        assert round_pb2.RelayItem.FromString(got[0].item.payload).sender == "cora"


async def test_starting_studies(world: Any) -> None:
    async with world.running(world.folder) as address:
        operator = world.operator(address)
        signed, trust = world.manifest()
        async with world.refused(VerificationError, "initial weights"):
            await operator.start(signed, world.weights[:-1])
        async with world.refused(VerificationError, "initial weights"):
            await operator.start(signed, world.weights + 1)
        forged = Signed(payload=signed.payload, signer="root", signature=bytes(64))
        async with world.refused(VerificationError, "signature"):
            await operator.start(forged, world.weights)
        self_signed = operator.sign(Label.MANIFEST, trust.manifest)
        async with world.refused(VerificationError, "root"):
            await operator.start(self_signed, world.weights)
        async with world.refused(VerificationError, "another manifest"):
            await operator.start(signed, world.weights, digest=b"\x00" * 32)
        elsewhere, _ = world.consortium.manifest(
            world.members, world.consortium.member(Role.COORDINATOR, "other"), world.weights
        )
        async with world.refused(IdentityError):
            await operator.start(elsewhere, world.weights)
        stranger = world.Operator(world.consortium.member(Role.OPERATOR, "oskar"), address)
        stolen = operator.order(trust.digest, study_pb2.OperatorCommand.ACTION_START)
        async with world.refused(IdentityError, "own orders"):
            first = pb.StartStudyMessage(order=stolen, manifest=signed)
            await stranger.send("StartStudy", [first])
        for _ in range(2):
            await operator.start(signed, world.weights)
        changed, _ = world.manifest(rounds=3)
        async with world.refused(ConflictError, "version 1"):
            await operator.start(changed, world.weights)
        site = world.Site(world.members[0], address, trust)
        async with world.refused(IdentityError, "may not call"):
            await site.stub.GetStudyStatus(pb.StudyStatusRequest())
        async with world.refused(IdentityError, "may not call"):
            await operator.stub.PostJoin(pb.PostRequest())
        assert (await operator.status("")).study == "trial"
        async with world.refused(IdentityError, "not known"):
            await operator.status("nothing")


async def test_a_newer_manifest_comes_into_force_with_new_keys(world: Any, updates: Any) -> None:
    async with world.running(world.folder) as address:
        operator = world.operator(address)
        sites = await world.planned(address)
        roster = [entry for entry in sites[0].trust.manifest.roster if entry.name != "dora"]
        changes = {"version": 2, "first_round": 2, "previous_digest": sites[0].trust.digest}
        second, trust = world.manifest(**changes, roster=roster)
        unrelated, _ = world.manifest(**{**changes, "previous_digest": b"\x01" * 32})
        async with world.refused(VerificationError, "follow"):
            await operator.start(unrelated, world.weights)
        for _ in range(2):
            await operator.start(second, world.weights)
        await world.each(site.contribute(1, updates[i][1]) for i, site in enumerate(sites))
        await sites[0].until(lambda s: s.phase == pb.PHASE_RELEASE)
        await world.each(site.report(1, MODEL) for site in sites)
        snapshot = await sites[0].until(lambda s: s.round == 2)
        assert (snapshot.phase, snapshot.manifest_version) == (pb.PHASE_KEYS, 2)
        assert list(snapshot.keys_wanted_by) == ["anna", "bert", "cora"]
        async with world.refused(IdentityError, "not on the roster"):
            await sites[3].record(1, pb.RECORD_KIND_CLOSE)
        anna = world.Site(world.members[0], address, trust)
        for name in ("anna", "bert", "cora"):
            await anna.put_relay(anna.key_item(name))
        opened = verify_round_record(await anna.record(2, pb.RECORD_KIND_ROUND), trust, 2)
        assert opened.model_digest == MODEL
        third, _ = world.manifest(version=3, first_round=2, previous_digest=trust.digest, rounds=3)
        async with world.refused(VerificationError):
            await operator.start(third, world.weights)


async def test_abort(world: Any) -> None:
    async with world.running(world.folder) as address:
        anna, *_ = await world.started(address)
        operator = world.operator(address)
        abort = study_pb2.OperatorCommand.ACTION_ABORT
        async with world.refused(VerificationError, "another order"):
            start = study_pb2.OperatorCommand.ACTION_START
            await operator.stub.AbortStudy(operator.order(anna.trust.digest, start))
        async with world.refused(NotFoundError):
            await operator.stub.AbortStudy(operator.order(b"\x00" * 32, abort))
        await operator.stub.AbortStudy(operator.order(anna.trust.digest, abort, "wrong data"))
        snapshot = await anna.snapshot()
        assert snapshot.state == pb.STUDY_STATE_ABORTED and "wrong data" in snapshot.reason
        record = round_pb2.AbortRecord.FromString((await anna.record(1, pb.RECORD_KIND_CLOSE)).payload)
        assert "aborted by olga" in record.reason
        async with world.refused(LateError, "aborted"):
            await anna.join(1)


async def test_steps_of_another_suite_are_refused_clearly(world: Any, updates: Any) -> None:
    async with world.running(world.folder) as address:
        anna, *_ = sites = await world.planned(address)
        share = [pb.UploadMessage(header=await anna.header(1)), pb.UploadMessage(share=pb.ShareMessage())]
        async with world.refused(FormatError, "chunks only"):
            await anna.send("Upload", share)
        await world.each(site.contribute(1, updates[i][1]) for i, site in enumerate(sites))
        # Also where its ciphertexts are there and the sum is public: every site holds the key to them.
        await anna.until(lambda s: s.phase == pb.PHASE_RELEASE)
        for name in ("PostAcknowledgement", "PostAnswer", "PostSumCheck"):
            async with world.refused(ProtocolError, "no such step"):
                await getattr(anna.stub, name)(pb.PostRequest(study="trial"))
        for name in ("GetShares", "GetAnswers", "GetSumChecks"):
            async with world.refused(ProtocolError, "no such step"):
                await anext(aiter(getattr(anna.stub, name)(pb.GetRecordRequest(study="trial", round=1))))
        async with world.refused(ProtocolError, "no such step"):
            request = pb.GetUpdateChunksRequest(study="trial", round=1, indices=[0])
            await anext(aiter(anna.stub.GetUpdateChunks(request)))


async def test_who_is_not_on_the_roster(world: Any) -> None:
    async with world.running(world.folder) as address:
        _, trust = world.manifest()
        await world.started(address)
        mallory = world.Site(world.consortium.member(Role.SITE, "mallory"), address, trust)
        for call in (
            mallory.record(1, pb.RECORD_KIND_ROUND),
            mallory.fetch_sum(1),
            mallory.put_relay(mallory.key_item("anna")),
        ):
            async with world.refused(IdentityError, "not on the roster"):
                await call
        reply = await mallory.stub.Hello(pb.HelloRequest(protocol=1))
        assert not reply.studies
        impostor = world.Site(world.consortium.member(Role.SITE, "anna2"), address, trust)
        impostor.name = "anna"
        async with world.refused(IdentityError):
            await impostor.record(1, pb.RECORD_KIND_ROUND)


async def test_a_certificate_with_other_keys_than_the_manifests(world: Any, tmp_path: Any) -> None:
    async with world.running(world.folder) as address:
        anna, *_ = await world.started(address)
        world.consortium.folder = tmp_path / "again"
        twin = world.Site(world.consortium.member(Role.SITE, "anna"), address, anna.trust)
        async with world.refused(IdentityError, "another TLS key"):
            await twin.record(1, pb.RECORD_KIND_ROUND)


async def test_revocation_takes_effect_at_once(world: Any) -> None:
    async with world.running(world.folder) as address:
        *others, dora = await world.started(address)
        stream = dora.stub.WatchWork(pb.WatchWorkRequest())
        assert await stream.read()
        await world.each(site.join(1) for site in others)
        signed = world.consortium.revoke(world.members[3])
        member_files.write_status(world.folder, signed)
        await others[0].until(lambda s: s.phase == pb.PHASE_UPLOAD)  # dora is not waited for
        async with world.refused(IdentityError, "revoked"):
            await dora.record(1, pb.RECORD_KIND_ROUND)
        async with world.refused(IdentityError, "revoked"):  # also on a stream that was open before
            while await stream.read() is not grpc.aio.EOF:
                pass
        plan = await others[0].record(1, pb.RECORD_KIND_PLAN)
        assert len(round_pb2.PlanRecord.FromString(plan.payload).joins) == 3
