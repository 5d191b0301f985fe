"""What members fetch: status list, manifests, initial weights, records, sums."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from cipherward import __version__
from cipherward.coordinator.api.dispatch import Call
from cipherward.coordinator.api.posting import not_found
from cipherward.coordinator.daemon.core import Core
from cipherward.coordinator.daemon.view import StudyView, sum_set
from cipherward.coordinator.rounds.state import Phase
from cipherward.coordinator.store.chunks import ChunkSet
from cipherward.coordinator.store.database import Transaction
from cipherward.coordinator.store.studies import COMMIT, REPORT
from cipherward.errors import ProtocolError
from cipherward.proto.v1 import coordinator_pb2 as pb
from cipherward.proto.v1.common_pb2 import Signed

PROTOCOL = 1


class Downloads:
    """See the service's definition."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def hello(self, call: Call, request: pb.HelloRequest) -> pb.HelloReply:
        """Versions, the newest status list, and the caller's studies."""
        if request.protocol != PROTOCOL:
            raise ProtocolError(
                f"{call.name} speaks protocol {request.protocol}",
                why=f"this coordinator speaks {PROTOCOL}",
                fix="Install matching versions of Cipherward",
            )
        core = self._core
        views = core.watching.of_site(call.name) if call.is_site else []
        return pb.HelloReply(
            protocol=PROTOCOL,
            version=__version__,
            libraries=sorted({view.current.params.library for view in core.studies.views}),
            status_list=core.member.status.newest.signed,
            now=int(core.clock.now()),
            studies=[core.watching.timed(core.watching.snapshot(v, call.name), v) for v in views],
        )

    async def status_list(self, call: Call, request: pb.GetStatusListRequest) -> Signed:
        """The newest status list."""
        return self._core.member.status.newest.signed

    async def manifest(self, call: Call, request: pb.GetManifestRequest) -> Signed:
        """A version of the manifest; 0: the newest."""
        view = self._visible(call, request.study)
        for version in reversed(view.versions):
            if request.version in (0, version.number):
                return version.signed
        raise not_found(f"version {request.version} of the manifest of {view.name}")

    async def initial_weights(
        self, call: Call, request: pb.GetManifestRequest
    ) -> AsyncGenerator[pb.DataChunk, None]:
        """The weights that the first round starts from."""
        view = self._visible(call, request.study)
        stored = await self._core.writer.transaction(lambda t: t.chunks.load(view.weights))
        async for chunk in self._stream(stored, 0):
            if call.is_site:
                self._core.traffic.down(view.name, 1, chunk)
            yield chunk

    async def record(self, call: Call, request: pb.GetRecordRequest) -> Signed:
        """A record of a round; for COMMIT the caller's own last one, whatever the round."""
        view = self._visible(call, request.study)

        def find(t: Transaction) -> Signed | None:
            if request.kind == pb.RECORD_KIND_COMMIT:
                return t.studies.last_post(view.name, COMMIT, call.name) if call.is_site else None
            # A database may have no such number: it is asked about rounds that there were.
            if request.round > view.state.round:
                return None
            return t.studies.record(view.name, request.round, request.kind)

        found = await self._core.writer.transaction(find)
        self._bill(call, view, request.round, request, up=True)
        if found is None:
            kind = pb.RecordKind.Name(request.kind) if request.kind in pb.RecordKind.values() else "unknown"
            raise not_found(f"{kind.rpartition('_')[2].lower()} record of round {request.round}")
        self._bill(call, view, request.round, found, up=False)
        return found

    async def sum(self, call: Call, request: pb.GetSumRequest) -> AsyncGenerator[pb.DataChunk, None]:
        """Chunks of a closed round's sum, from ``first_index``."""
        view = self._visible(call, request.study)
        self._core.traffic.up(view.name, request.round, request)
        state = view.state
        closed = request.round < state.round or (
            request.round == state.round and state.phase in (Phase.UNSEAL, Phase.RELEASE)
        )
        if not closed:
            raise ProtocolError(f"round {request.round} is not closed", why="its sum is not complete")
        name = sum_set(view.name, request.round)
        stored = await self._core.writer.transaction(lambda t: t.chunks.load(name))
        # Older sums are kept for auditors only: a late site takes the model from a peer.
        if stored.count == 0 or request.round < state.round - 1:
            raise not_found(f"sum of round {request.round} (any more): fetch the model from a peer")
        async for chunk in self._stream(stored, request.first_index):
            self._core.traffic.down(view.name, request.round, chunk)
            yield chunk

    async def reports(self, call: Call, request: pb.GetRecordRequest) -> AsyncGenerator[Signed, None]:
        """What sites reported after a round."""
        view = self._visible(call, request.study)
        self._core.traffic.up(view.name, request.round, request)
        if request.round > view.state.round:
            return
        found = await self._core.writer.transaction(
            lambda t: t.studies.round_posts(view.name, request.round, REPORT)
        )
        for signed in found.values():
            self._core.traffic.down(view.name, request.round, signed)
            yield signed

    async def _stream(self, stored: ChunkSet, first: int) -> AsyncGenerator[pb.DataChunk, None]:
        for index, place in enumerate(stored.places(first), first):
            data = await asyncio.to_thread(self._core.blobs.read, place)
            yield pb.DataChunk(index=index, data=data)

    def _visible(self, call: Call, study: str) -> StudyView:
        view = self._core.studies.require(study)
        if call.is_site:
            view.require_site(call.name, call.peer.tls_key_digest)
        return view

    def _bill(
        self, call: Call, view: StudyView, number: int, message: pb.GetRecordRequest | Signed, *, up: bool
    ) -> None:
        if call.is_site:
            (self._core.traffic.up if up else self._core.traffic.down)(view.name, number, message)
