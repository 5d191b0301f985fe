"""Uploads: chunks in order, in the quorum suite followed by one sealed share for each member of J; checked, staged
in segments; resumable at any chunk or share after any break.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from cipherward.coordinator.api.admission import Admission
from cipherward.coordinator.api.dispatch import Call
from cipherward.coordinator.api.limits import Incoming
from cipherward.coordinator.api.reception import Reception
from cipherward.coordinator.api.staging import ChunkStage, ShareStage, Stage, shares_of
from cipherward.coordinator.api.storing import taken_back
from cipherward.coordinator.daemon.core import Core
from cipherward.coordinator.daemon.view import (
    StudyView,
    share_prefix,
    share_set,
    update_prefix,
    update_set,
)
from cipherward.coordinator.rounds.state import Phase
from cipherward.coordinator.store.chunks import Segment
from cipherward.coordinator.store.database import Transaction
from cipherward.errors import ConflictError, FormatError, LateError, ProtocolError
from cipherward.proto.v1.coordinator_pb2 import UploadHeader, UploadMessage, UploadState


@dataclass
class _Active:
    """An open upload of a site. A newer one takes over: the older connection may be long dead."""

    stop: asyncio.Event
    ended: asyncio.Event


class Uploads:
    """See the service's definition."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._active: dict[tuple[str, str], _Active] = {}
        self._admission = Admission()

    async def state(self, call: Call, request: UploadHeader) -> UploadState:
        """How many chunks and shares of the attempt are durable."""
        view = self._view(call, request)
        self._core.traffic.up(request.study, request.round, request)
        key = (view.name, request.round, call.name, request.attempt)
        reply = await self._core.writer.transaction(
            lambda t: UploadState(
                chunks_stored=t.chunks.count(update_set(*key)), shares_stored=t.chunks.count(share_set(*key))
            )
        )
        self._core.traffic.down(request.study, request.round, reply)
        return reply

    async def upload(self, call: Call, messages: Incoming[UploadMessage]) -> UploadState:
        """Header, then chunks and shares from the first that is not stored yet."""
        first = await anext(messages, None)
        if first is None or not first.HasField("header") or first.data:
            raise FormatError("an upload does not begin with its header")
        header = first.header
        view = self._view(call, header)
        self._core.traffic.up(header.study, header.round, first)
        key = (view.name, call.name)
        mine = _Active(asyncio.Event(), asyncio.Event())
        while (before := self._active.get(key)) is not None:
            before.stop.set()
            await before.ended.wait()
        self._active[key] = mine
        try:
            reply = await self._receive(call, view, header, messages, mine.stop)
        finally:
            del self._active[key]
            mine.ended.set()
        self._core.traffic.down(header.study, header.round, reply)
        return reply

    def _view(self, call: Call, header: UploadHeader) -> StudyView:
        view = self._core.studies.require(header.study)
        view.require_site(call.name, call.peer.tls_key_digest)
        if header.round < view.state.round or not view.state.running:
            raise LateError(
                f"an upload for round {header.round} came late", why=f"round {view.state.round} has begun"
            )
        if header.round > view.state.round or view.plan is None:
            raise ProtocolError(f"round {header.round} has no plan yet", why="uploads follow the plan record")
        if header.plan_digest != view.plan.digest:
            raise ConflictError(f"{call.name} uploads under another plan of round {header.round}")
        if call.name not in view.plan.joins:
            raise ProtocolError(f"{call.name} is not in the plan of round {header.round}")
        if header.attempt < 1:
            raise FormatError("an attempt's number is 1 or more")
        return view

    async def _begin(self, call: Call, view: StudyView, header: UploadHeader) -> tuple[int, int]:
        """Chunks and shares stored of this attempt; lower attempts are given up for it."""
        key = (view.name, header.round, call.name, header.attempt)

        update, share = update_set(*key), share_set(*key)

        def begin(t: Transaction) -> tuple[tuple[int, int], list[str]]:
            committed = self._core.studies.require(view.name).state.commits.get(call.name)
            if committed is not None:
                if committed.attempt != header.attempt:
                    raise ConflictError(
                        f"{call.name} already committed attempt {committed.attempt} of round {header.round}"
                    )
                return (t.chunks.count(update), t.chunks.count(share)), []
            self._still_open(call, view, header)
            blobs: list[str] = []
            stored: dict[str, int] = {}
            for prefix in (update_prefix(view.name, header.round), share_prefix(view.name, header.round)):
                own = f"{prefix}{call.name}/"
                found = t.chunks.counts(own)
                for name in found:
                    attempt = int(name.removeprefix(own))
                    if attempt > header.attempt:
                        raise ConflictError(f"{call.name} already began attempt {attempt}")
                    if attempt < header.attempt:
                        blobs.extend(t.chunks.drop(name))
                stored |= found
            return (stored.get(update, 0), stored.get(share, 0)), blobs

        counts, blobs = await self._core.writer.transaction(begin)
        await asyncio.to_thread(self._core.blobs.discard, blobs)
        return counts

    def _still_open(self, call: Call, view: StudyView, header: UploadHeader) -> None:
        state = self._core.studies.require(view.name).state
        if state.round != header.round or state.phase is not Phase.UPLOAD or not state.running:
            raise LateError(
                f"{call.name}'s upload for round {header.round} came late",
                why=f"the study is at round {state.round}, {state.phase.value}",
            )

    async def _receive(
        self,
        call: Call,
        view: StudyView,
        header: UploadHeader,
        messages: Incoming[UploadMessage],
        stop: asyncio.Event,
    ) -> UploadState:
        core = self._core
        stored = await self._begin(call, view, header)
        key = (view.name, header.round, call.name, header.attempt)
        version, billed = view.version(header.round), (messages.total, sum(stored))
        chunks = ChunkStage(update_set(*key), stored[0], core.blobs, core.inspection, version)
        shares = ShareStage(share_set(*key), stored[1], core.blobs, core.inspection, shares_of(view, version))

        def bill() -> None:
            nonlocal billed
            now = (messages.total, chunks.received + shares.received)
            core.traffic.up_bytes(view.name, header.round, now[0] - billed[0], now[1] - billed[1])
            billed = now

        async def record(parts: Sequence[tuple[Stage, Segment]]) -> None:
            await self._record(call, view, header, parts)
            for stage, segment in parts:
                stage.stored = segment.end
                core.metrics.stored(sum(segment.sizes))
            core.presence.uploaded(view.name, header.round, call.name, chunks.stored)
            core.watching.wake_operators()
            bill()

        try:
            async with Reception(
                messages, chunks, shares, record, stop, core.inspection.threads
            ) as reception:
                await self._admission.through(reception.run)
        finally:
            bill()
        return UploadState(chunks_stored=chunks.stored, shares_stored=shares.stored)

    async def _record(
        self, call: Call, view: StudyView, header: UploadHeader, parts: Sequence[tuple[Stage, Segment]]
    ) -> None:
        def record(t: Transaction) -> None:
            self._still_open(call, view, header)
            if call.name in self._core.studies.require(view.name).state.commits:
                raise ConflictError(f"{call.name} already committed in round {header.round}")
            for stage, segment in parts:
                if t.chunks.count(stage.name) != segment.first:
                    raise ConflictError(f"{call.name} uploads the same attempt twice at once")
                t.chunks.add(stage.name, segment)

        async with taken_back(self._core.blobs, [segment for _, segment in parts]):
            await self._core.writer.transaction(record)
