"""Uploads: chunks in order, in the quorum suite followed by one sealed share for each member of J; checked, staged
in segments; resumable at any chunk or share after any break.

Memory holds one segment for each of the 16 uploads that are let in; the others wait unread at their senders.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from cipherward.coordinator.api.dispatch import Call
from cipherward.coordinator.api.staging import ChunkStage, ShareStage, Stage, shares_of
from cipherward.coordinator.blobs.writer import SEGMENT_BYTES
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
from cipherward.errors import ConflictError, FormatError, LateError, ProtocolError, UnavailableError
from cipherward.proto.v1.coordinator_pb2 import UploadHeader, UploadMessage, UploadState

SEGMENT_SECONDS = 60.0
"""A sender must deliver a segment's worth in this time, or its place is given to another; it may resume."""


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

    async def upload(self, call: Call, messages: AsyncIterator[UploadMessage]) -> UploadState:
        """Header, then chunks and shares from the first that is not stored yet."""
        first = await anext(messages, None)
        if first is None or not first.HasField("header") or first.data:
            raise FormatError("an upload does not begin with its header")
        header = first.header
        view = self._view(call, header)
        self._core.traffic.up(header.study, header.round, first)
        key = (view.name, call.name)
        mine = _Active(asyncio.Event(), asyncio.Event())
        before, self._active[key] = self._active.get(key), mine
        try:
            if before is not None:
                before.stop.set()
                await before.ended.wait()
            async with self._core.admission:
                reply = await self._receive(call, view, header, messages, mine.stop)
        finally:
            mine.ended.set()
            if self._active.get(key) is mine:
                del self._active[key]
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
        blobs: list[str] = []
        key = (view.name, header.round, call.name, header.attempt)

        def stored(t: Transaction) -> tuple[int, int]:
            return t.chunks.count(update_set(*key)), t.chunks.count(share_set(*key))

        def begin(t: Transaction) -> tuple[int, int]:
            committed = self._core.studies.require(view.name).state.commits.get(call.name)
            if committed is not None:
                if committed.attempt != header.attempt:
                    raise ConflictError(
                        f"{call.name} already committed attempt {committed.attempt} of round {header.round}"
                    )
                return stored(t)
            self._still_open(call, view, header)
            for prefix in (update_prefix(view.name, header.round), share_prefix(view.name, header.round)):
                own = f"{prefix}{call.name}/"
                for name in t.chunks.names(own):
                    attempt = int(name.removeprefix(own))
                    if attempt > header.attempt:
                        raise ConflictError(f"{call.name} already began attempt {attempt}")
                    if attempt < header.attempt:
                        blobs.extend(t.chunks.drop(name))
            return stored(t)

        counts = await self._core.writer.transaction(begin)
        await asyncio.to_thread(self._core.blobs.delete, blobs)
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
        messages: AsyncIterator[UploadMessage],
        stop: asyncio.Event,
    ) -> UploadState:
        stored = await self._begin(call, view, header)
        key = (view.name, header.round, call.name, header.attempt)
        blobs, version = self._core.blobs, view.version(header.round)
        chunks = ChunkStage(update_set(*key), stored[0], blobs, version)
        shares = ShareStage(share_set(*key), stored[1], blobs, shares_of(view, version))

        one_at_a_time = asyncio.Lock()

        async def write_and_record(stage: Stage) -> None:
            async with one_at_a_time:
                segment = await asyncio.to_thread(stage.write)
                if segment is None:
                    return
                await self._record(call, view, header, stage.name, segment)
                stage.stored = segment.end
                self._core.presence.uploaded(view.name, header.round, call.name, chunks.stored)
                self._core.metrics.stored(sum(segment.sizes))
                self._core.watching.wake_operators()

        async def flush(stage: Stage) -> None:
            # A caller that hangs up must not come between a segment and its record: what is written and what
            # is recorded could then differ.
            await asyncio.shield(write_and_record(stage))

        stage: Stage = chunks
        source = _Timed(messages, stop)
        try:
            async for message in source:
                self._core.traffic.up(header.study, header.round, message)
                if message.HasField("header"):
                    raise FormatError("an upload has one header")
                if message.HasField("share") and stage is chunks:
                    await flush(chunks)
                    shares.require_begin(chunks)
                    stage = shares
                stage.take(message)
                if stage.waiting >= SEGMENT_BYTES:
                    await flush(stage)
                    source.restart()
        except (UnavailableError, asyncio.CancelledError):
            await flush(stage)  # what came whole need not come again
            raise
        finally:
            source.close()
        await flush(stage)
        return UploadState(chunks_stored=chunks.stored, shares_stored=shares.stored)

    async def _record(
        self, call: Call, view: StudyView, header: UploadHeader, name: str, segment: Segment
    ) -> None:
        def record(t: Transaction) -> None:
            self._still_open(call, view, header)
            if call.name in self._core.studies.require(view.name).state.commits:
                raise ConflictError(f"{call.name} already committed in round {header.round}")
            if t.chunks.count(name) != segment.first:
                raise ConflictError(f"{call.name} uploads the same attempt twice at once")
            t.chunks.add(name, segment)

        try:
            await self._core.writer.transaction(record)
        except BaseException:
            await asyncio.to_thread(self._core.blobs.delete, [segment.blob])
            raise


class _Timed:
    """The messages, until ``stop`` is set or a segment takes too long: then UnavailableError."""

    def __init__(self, messages: AsyncIterator[UploadMessage], stop: asyncio.Event) -> None:
        self._messages = messages
        self._stop = asyncio.ensure_future(stop.wait())
        self.restart()

    def restart(self) -> None:
        """A segment is complete: the next one's time begins."""
        self._until = asyncio.get_running_loop().time() + SEGMENT_SECONDS

    def close(self) -> None:
        """Wait for nothing any more."""
        self._stop.cancel()

    def __aiter__(self) -> _Timed:
        return self

    async def __anext__(self) -> UploadMessage:
        ahead = asyncio.ensure_future(anext(self._messages, None))
        left = max(0.0, self._until - asyncio.get_running_loop().time())
        try:
            await asyncio.wait({ahead, self._stop}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if not ahead.done():
                why = "a newer upload of the site began" if self._stop.done() else "it was too slow"
                raise UnavailableError("the upload was cut off", why=why, fix="Resume it")
        finally:
            ahead.cancel()  # does nothing to one that is done
        message = ahead.result()
        if message is None:
            raise StopAsyncIteration
        return message
