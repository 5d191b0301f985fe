"""Somebody who calls a coordinator: with credentials, or without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from cipherward.errors import UnavailableError
from cipherward.proto.v1.coordinator_pb2_grpc import CoordinatorStub
from cipherward.site_agent.client.errors import translated

CALL_SECONDS = 30.0
OPTIONS = (
    ("grpc.max_receive_message_length", 16 * 2**20),
    ("grpc.max_send_message_length", 64 * 2**20),
    ("grpc.use_local_subchannel_pool", 1),
)


@contextmanager
def not_limited() -> Iterator[None]:
    """A refusal because calls come too often says nothing about the attack: RuntimeError, the row's error."""
    try:
        yield
    except UnavailableError as error:
        if "too often" in error.what:
            raise RuntimeError(f"the attack ran into a limit of calls: {error}") from error
        raise


class Caller:
    """Somebody with a channel to a coordinator."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None) -> None:
        if credentials is None:
            self.channel = grpc.insecure_channel(address, options=list(OPTIONS))
        else:
            self.channel = grpc.secure_channel(address, credentials, options=list(OPTIONS))
        self.stub: Any = CoordinatorStub(self.channel)

    def call(self, rpc: str, request: Any, seconds: float = CALL_SECONDS) -> Any:
        """A call with one reply; raises our errors. ``request``: a message, or an iterable that is streamed."""
        with not_limited(), translated():
            return getattr(self.stub, rpc)(request, timeout=seconds)

    def fetch(self, rpc: str, request: Any) -> list[Any]:
        """All replies of a call."""
        with not_limited(), translated():
            return list(getattr(self.stub, rpc)(request, timeout=CALL_SECONDS))

    def close(self) -> None:
        """Hang up."""
        self.channel.close()
