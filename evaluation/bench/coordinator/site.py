"""One made-up site: its connection, its watch stream, and the calls that it makes, each timed."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import grpc

from cipherward.crypto.labels import Label
from cipherward.crypto.pki.store import Member
from cipherward.errors import UnavailableError
from cipherward.proto.v1 import coordinator_pb2 as pb
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.coordinator_pb2_grpc import CoordinatorStub
from cipherward.site_agent.client.errors import translate

CHANNEL_OPTIONS = (
    # As agents dial.
    ("grpc.max_receive_message_length", 16 * 2**20),
    ("grpc.max_send_message_length", 16 * 2**20),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 65536),
    ("grpc.use_local_subchannel_pool", 1),
)
UPLOAD = "/cipherward.v1.Coordinator/Upload"
CALL_SECONDS, PHASE_SECONDS = 300.0, 900.0
RELAY_PIECE = 2**20

Timings = defaultdict[str, list[float]]
Reached = Callable[[pb.StudySnapshot], bool]


class LoadSite:
    """``number`` counts all sites of the benchmark."""

    def __init__(self, member: Member, number: int, timings: Timings) -> None:
        self.member, self.number, self.name = member, number, member.identity.name
        self._timings = timings
        self._snapshots: dict[str, pb.StudySnapshot] = {}
        self._news = asyncio.Condition()
        self._watching: asyncio.Task[None] | None = None

    def sign(self, label: Label, message: Any) -> Signed:
        """A record of this site's."""
        return self.member.signing_key.sign(label, message, str(self.member.identity))

    async def connect(self, address: str) -> None:
        """Dial, say hello and watch, as an agent does when it starts."""
        self._channel = grpc.aio.secure_channel(
            address, self.member.channel_credentials(), options=CHANNEL_OPTIONS
        )
        self._stub: Any = CoordinatorStub(self._channel)
        self._upload: Any = self._channel.stream_unary(
            UPLOAD, response_deserializer=pb.UploadState.FromString
        )
        await self.call("Hello", pb.HelloRequest(protocol=1))
        self._watching = asyncio.create_task(self._watch())

    async def connect_bare(self, address: str) -> None:
        """Dial the server that drops everything."""
        self._bare = grpc.aio.secure_channel(
            address, self.member.channel_credentials(), options=CHANNEL_OPTIONS
        )
        self._bare_upload: Any = self._bare.stream_unary(
            UPLOAD, response_deserializer=pb.UploadState.FromString
        )
        await self._bare.channel_ready()

    async def bare_upload(self, messages: Iterable[bytes]) -> None:
        """As ``upload``, to that server."""

        async def sent() -> AsyncIterator[bytes]:
            for message in messages:
                yield message

        await self._bare_upload(sent(), timeout=CALL_SECONDS)

    async def close_bare(self) -> None:
        """Hang up."""
        await self._bare.close()

    async def close(self) -> None:
        """Hang up."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
            await self._channel.close()

    async def _watch(self) -> None:
        async for snapshot in self._stub.WatchWork(pb.WatchWorkRequest()):
            self._snapshots[snapshot.study] = snapshot
            async with self._news:
                self._news.notify_all()

    async def until(self, study: str, reached: Reached) -> pb.StudySnapshot:
        """The first snapshot of the study for which ``reached`` holds; UnavailableError if it is aborted."""
        async with asyncio.timeout(PHASE_SECONDS), self._news:
            while True:
                snapshot = self._snapshots.get(study)
                if snapshot is not None and snapshot.state == pb.STUDY_STATE_ABORTED:
                    raise UnavailableError("the study was aborted", why=snapshot.reason)
                if snapshot is not None and reached(snapshot):
                    return snapshot
                if self._watching is not None and self._watching.done():
                    raise UnavailableError(f"{self.name}'s watch stream ended")
                await self._news.wait()

    async def call(self, rpc: str, request: Any) -> Any:
        """A unary call."""
        return await self._timed(rpc, getattr(self._stub, rpc)(request, timeout=CALL_SECONDS))

    async def fetch(self, rpc: str, request: Any) -> list[Any]:
        """All messages of a stream."""

        async def read() -> list[Any]:
            return [message async for message in getattr(self._stub, rpc)(request, timeout=CALL_SECONDS)]

        found: list[Any] = await self._timed(rpc, read())
        return found

    async def send(self, rpc: str, messages: Iterable[Any]) -> Any:
        """A call that streams ``messages``."""

        async def sent() -> AsyncIterator[Any]:
            for message in messages:
                yield message

        return await self._timed(rpc, getattr(self._stub, rpc)(sent(), timeout=CALL_SECONDS))

    async def upload(self, messages: AsyncIterator[bytes]) -> pb.UploadState:
        """The serialised ``messages``."""
        state: pb.UploadState = await self._timed("Upload", self._upload(messages, timeout=CALL_SECONDS))
        return state

    async def _timed(self, rpc: str, call: Any) -> Any:
        start = time.perf_counter()
        try:
            return await call
        except grpc.RpcError as error:
            raise translate(error) from error
        finally:
            self._timings[rpc].append(time.perf_counter() - start)
