"""Sites of a quorum study, and what each has dealt. Seals are random bytes of the right size: the coordinator can
look into none of them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cipherward.crypto.labels import Label
from cipherward.crypto.quorum_records import (
    ENCRYPTED_VECTOR_BYTES,
    SEALED_KEY_BYTES,
    SEALED_SHARE_BYTES,
    sealed_root,
)
from cipherward.crypto.records import verify_plan
from cipherward.crypto.sealing import SealingKey
from cipherward.crypto.signing import record_digest
from cipherward.crypto.suites.registry import suite
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

    async def update_chunks(
        self, number: int, *indices: int, without_own: bool = False
    ) -> list[pb.DataChunk]:
        request = pb.GetUpdateChunksRequest(
            study="trial", round=number, indices=indices, without_own=without_own
        )
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


def fields_of(record: Signed) -> dict[str, Any]:
    return {"payload": record.payload, "signature": record.signature}


def signer(member: Member) -> str:
    return str(member.site.member.identity)


def stored_blobs(folder: Path) -> list[Path]:
    """Files of a coordinator's blobs, without the mark that says whose they are."""
    return [path for path in (folder / "blobs").rglob("*") if path.is_file() and path.name != "owner"]
