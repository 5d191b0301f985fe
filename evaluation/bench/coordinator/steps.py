"""The steps of a round that all suites have, for one made-up site."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cipherward.crypto.labels import Label
from cipherward.crypto.merkle import leaf_hash, root
from cipherward.crypto.records import Plan, StudyTrust, verify_close, verify_plan, verify_round_record
from cipherward.crypto.signing import record_digest
from cipherward.crypto.suites.payload import Layout
from cipherward.crypto.transcript import transcript_start
from cipherward.errors import VerificationError
from cipherward.evaluation.bench.coordinator.site import LoadSite
from cipherward.evaluation.bench.coordinator.updates import Update
from cipherward.proto.v1 import coordinator_pb2 as pb
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.round_pb2 import CloseRecord, Commit, Join, ModelReport
from cipherward.site_agent.training.metrics import METRICS

ROUND = 1
"""Each study of the benchmark has one round."""
T = TypeVar("T")


@dataclass
class Books:
    """One study as a client process knows it. What was verified once is not verified again for another of the
    process's sites, if it is the same to the last byte."""

    signed: Signed
    trust: StudyTrust
    _believed: dict[bytes, object] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The study's."""
        return self.trust.manifest.study

    @property
    def length(self) -> int:
        """Values in an update."""
        return Layout(self.trust.manifest.parameter_count, METRICS).length

    def once(self, raw: bytes, verify: Callable[[], T]) -> T:
        """What ``verify`` made of these bytes."""
        if raw not in self._believed:
            self._believed[raw] = verify()
        return self._believed[raw]  # type: ignore[return-value]


class Steps:
    """A site's way through the one round of a study."""

    def __init__(self, site: LoadSite, books: Books) -> None:
        self.site, self.books = site, books
        self.plan_digest = b""

    async def reach(self, *phases: pb.Phase.ValueType) -> pb.StudySnapshot:
        """Wait until the round is in one of these phases."""
        return await self.site.until(self.books.name, lambda snapshot: snapshot.phase in phases)

    async def finished(self) -> None:
        """Wait until the study has ended well."""
        await self.site.until(self.books.name, lambda one: one.state == pb.STUDY_STATE_FINISHED)

    async def _record(self, kind: pb.RecordKind.ValueType) -> Signed:
        request = pb.GetRecordRequest(study=self.books.name, round=ROUND, kind=kind)
        found: Signed = await self.site.call("GetRecord", request)
        return found

    async def opening(self) -> bytes:
        """The digest of the round record."""
        signed = await self._record(pb.RECORD_KIND_ROUND)
        books = self.books
        books.once(signed.payload, lambda: verify_round_record(signed, books.trust, ROUND))
        return record_digest(Label.ROUND_RECORD, signed)

    async def join(self, **keys: bytes) -> None:
        """Once the round is open."""
        await self.reach(pb.PHASE_OPEN)
        self._opening = await self.opening()
        join = Join(
            manifest_digest=self.books.trust.digest,
            round_record_digest=self._opening,
            round=ROUND,
            site=self.site.name,
            library=self.books.trust.params.library,
            **keys,
        )
        await self.post("PostJoin", self.site.sign(Label.JOIN, join))

    async def post(self, rpc: str, record: Signed) -> None:
        """A signed record."""
        await self.site.call(rpc, pb.PostRequest(study=self.books.name, record=record))

    async def plan(self) -> Plan:
        """Once it is made."""
        return await self.reach_plan(pb.PHASE_UPLOAD)

    async def reach_plan(self, *phases: pb.Phase.ValueType) -> Plan:
        """The plan, once the round is in one of these phases."""
        await self.reach(*phases)
        signed = await self._record(pb.RECORD_KIND_PLAN)
        trust, opening = self.books.trust, self._opening
        plan = self.books.once(signed.payload, lambda: verify_plan(signed, trust, opening, ROUND))
        self.plan_digest = plan.digest
        return plan

    async def upload(self, messages: Iterable[bytes], whole: tuple[int, int]) -> None:
        """All of an update; VerificationError unless ``whole`` chunks and shares are durable at the end."""
        header = pb.UploadHeader(study=self.books.name, round=ROUND, attempt=1, plan_digest=self.plan_digest)

        async def sent() -> AsyncIterator[bytes]:
            yield pb.UploadMessage(header=header).SerializeToString()
            for message in messages:
                yield message

        await self.site.call("GetUploadState", header)
        state = await self.site.upload(sent())
        if (state.chunks_stored, state.shares_stored) != whole:
            raise VerificationError(
                f"{state.chunks_stored} chunks and {state.shares_stored} shares of {self.site.name} are stored",
                why=f"it sent {whole[0]} and {whole[1]}",
            )

    async def commit(self, update: Update) -> None:
        """Sign for the upload."""
        commit = Commit(
            manifest_digest=self.books.trust.digest,
            plan_digest=self.plan_digest,
            round=ROUND,
            attempt=1,
            site=self.site.name,
            length=self.books.length,
            chunk_count=update.chunk_count,
            ciphertext_root=update.ciphertext_root,
            share_root=update.share_root,
            ledger_sequence=1,
            ledger_head=bytes(32),
        )
        await self.post("PostCommit", self.site.sign(Label.COMMIT, commit))

    async def closing(self) -> Signed:
        """The close record, as it is."""
        return await self._record(pb.RECORD_KIND_CLOSE)

    async def closed(self, plan: Plan) -> tuple[bytes, CloseRecord]:
        """Digest and close record, which must count every site of the roster: nothing may be lost."""
        signed = await self._record(pb.RECORD_KIND_CLOSE)
        trust = self.books.trust
        start = transcript_start(self.books.name, trust.digest)
        record = self.books.once(signed.payload, lambda: verify_close(signed, trust, plan, start))
        if len(record.contributions) != len(trust.sites):
            raise VerificationError(
                f"{len(record.contributions)} of {len(trust.sites)} updates are in the sum"
            )
        return record_digest(Label.CLOSE_RECORD, signed), record

    async def sum(self, record: CloseRecord) -> list[bytes]:
        """The sum's chunks, which must have the close record's root."""
        request = pb.GetSumRequest(study=self.books.name, round=ROUND)
        chunks = [message.data for message in await self.site.fetch("GetSum", request)]
        if root([leaf_hash(chunk) for chunk in chunks]) != record.sum_root:
            raise VerificationError("the sum is not the one that the close record names")
        return chunks

    async def report(self, close: bytes, model: bytes) -> None:
        """Say which model this site has now."""
        report = ModelReport(
            manifest_digest=self.books.trust.digest,
            close_digest=close,
            round=ROUND,
            site=self.site.name,
            model_digest=model,
        )
        await self.post("PostModelReport", self.site.sign(Label.MODEL_REPORT, report))


async def all_of(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run them at the same time; the first error ends it."""
    waiting = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*waiting)
    finally:
        for one in waiting:
            one.cancel()
