"""Each limit of the policy table, exceeded for real over mutual TLS."""

from __future__ import annotations

from typing import Any

from cipherward.errors import (
    LimitError,
)
from cipherward.proto.v1 import coordinator_pb2 as pb
from cipherward.proto.v1.common_pb2 import Signed


async def test_limits(world: Any) -> None:
    async with world.running(world.folder) as address:
        anna, *_ = await world.started(address)
        record = Signed(payload=bytes(70_000), signer=str(anna.member.identity), signature=bytes(64))
        async with world.refused(LimitError, "70"):
            await anna.stub.PostJoin(pb.PostRequest(study="trial", record=record))
        async with world.refused(LimitError, "too often"):
            for _ in range(40):
                await anna.stub.Hello(pb.HelloRequest(protocol=1))
        streams = [anna.stub.WatchWork(pb.WatchWorkRequest()) for _ in range(8)]
        for stream in streams:
            await stream.read()
        async with world.refused(LimitError, "open"):
            await anna.snapshot()
