"""What every call goes through: identity, role, limits, sizes; and the telling of errors.

Handlers are plain coroutines that take a ``Call`` and raise errors of the one tree. They are bound to the
RPCs of the service descriptor: an RPC without handler or policy stops the service from starting.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import grpc
import structlog
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from cipherward.coordinator.api.errors import TRAILER, InternalError, detail_of, status_of
from cipherward.coordinator.api.limits import Limits
from cipherward.coordinator.api.policy import POLICIES, Policy
from cipherward.coordinator.daemon.metrics import Metrics
from cipherward.coordinator.daemon.presence import Presence
from cipherward.crypto.pki.peers import Peer, PeerVerifier
from cipherward.errors import (
    CipherwardError,
    IdentityError,
    LateError,
    LimitError,
    NotFoundError,
    UnavailableError,
    UsageError,
)
from cipherward.ids import Role
from cipherward.proto.v1 import coordinator_pb2 as pb

log = structlog.get_logger()
M = TypeVar("M", bound=Message)
SERVICE = pb.DESCRIPTOR.services_by_name["Coordinator"]


@dataclass(frozen=True)
class Call:
    """Who calls which RPC."""

    rpc: str
    peer: Peer

    @property
    def name(self) -> str:
        """The caller's name."""
        return self.peer.identity.name

    @property
    def is_site(self) -> bool:
        """A site calls."""
        return self.peer.identity.role is Role.SITE


Unary = Callable[[Call, Any], Awaitable[Message]]
Streaming = Callable[[Call, Any], AsyncGenerator[Message, None]]

# By (client streams, server streams); no RPC of the service streams both ways.
_MAKERS = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
}


def _serialise(message: Message) -> bytes:
    return message.SerializeToString()


class Dispatcher:
    """Wraps handlers for gRPC."""

    def __init__(self, verifier: PeerVerifier, limits: Limits, presence: Presence, metrics: Metrics) -> None:
        self._verifier, self._limits, self._presence, self._metrics = verifier, limits, presence, metrics

    def handlers(self, implemented: Mapping[str, Unary | Streaming]) -> grpc.GenericRpcHandler:
        """All RPCs of the service. UsageError if one has no policy or no handler: nothing is then served."""
        rpcs = {method.name: method for method in SERVICE.methods}
        for what, names in (("policy", POLICIES.keys()), ("handler", implemented.keys())):
            if odd := sorted(rpcs.keys() ^ names):
                raise UsageError(f"the service and its {what} table differ in {', '.join(odd)}")
        made = {}
        for name, method in rpcs.items():
            handler: Any = implemented[name]
            if method.server_streaming:
                serve: Any = self._streaming(name, handler)
            else:
                serve = self._unary(name, handler, client_streams=method.client_streaming)
            made[name] = _MAKERS[method.client_streaming, method.server_streaming](
                serve,
                request_deserializer=GetMessageClass(method.input_type).FromString,
                response_serializer=_serialise,
            )
        return grpc.method_handlers_generic_handler(SERVICE.full_name, made)

    def _unary(self, rpc: str, handler: Unary, *, client_streams: bool) -> Callable[..., Awaitable[Message]]:
        async def serve(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Message:
            caller: Peer | None = None
            try:
                policy = POLICIES[rpc]
                caller = self._authenticate(rpc, policy, context)
                with self._limits.admit(str(caller.identity), rpc, policy):
                    call = Call(rpc, caller)
                    if client_streams:
                        reply = await handler(call, _sized_stream(request, rpc, policy))
                    else:
                        reply = await handler(call, _sized(request, rpc, policy))
                self._metrics.served(rpc, "OK")
                return reply
            except Exception as error:  # noqa: BLE001  told to the caller, logged; the service goes on
                await self._refuse(rpc, caller, error, context)

        return serve

    def _streaming(self, rpc: str, handler: Streaming) -> Callable[..., AsyncIterator[Message]]:
        async def serve(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Message]:
            caller: Peer | None = None
            try:
                policy = POLICIES[rpc]
                caller = self._authenticate(rpc, policy, context)
                with self._limits.admit(str(caller.identity), rpc, policy):
                    replies = handler(Call(rpc, caller), _sized(request, rpc, policy))
                    async with aclosing(replies):
                        async for reply in replies:
                            # A stream may live for weeks: who was revoked or expired meanwhile gets no more.
                            self._verifier.verify(context.auth_context())
                            yield reply
                self._metrics.served(rpc, "OK")
            except Exception as error:  # noqa: BLE001  as above
                await self._refuse(rpc, caller, error, context)

        return serve

    def _authenticate(self, rpc: str, policy: Policy, context: grpc.aio.ServicerContext[Any, Any]) -> Peer:
        peer = self._verifier.verify(context.auth_context())
        role = peer.identity.role
        if role not in policy.roles:
            raise IdentityError(
                f"{peer.identity} may not call {rpc}",
                why=f"it is for {' and '.join(sorted(role.value + 's' for role in policy.roles))}",
            )
        if role is Role.SITE:
            self._presence.seen(peer.identity.name)
        return peer

    async def _refuse(
        self,
        rpc: str,
        caller: Peer | None,
        error: Exception,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> NoReturn:
        who = str(caller.identity) if caller else "unknown"
        if isinstance(error, CipherwardError):
            told = error
            log.info("call refused", rpc=rpc, caller=who, code=error.code, reason=str(error))
        else:
            incident = secrets.token_hex(4)
            told = InternalError(
                "the coordinator could not handle this call",
                why=f"it met something unforeseen, incident {incident}",
                fix="Ask its admin to look for the incident in the log",
            )
            log.error("call failed", rpc=rpc, caller=who, incident=incident, exc_info=error)
        # Asking for what is not there yet, or no longer needed, is part of a site's day.
        expected = isinstance(told, NotFoundError | LateError | UnavailableError)
        if caller is not None and caller.identity.role is Role.SITE and not expected:
            self._presence.refused(caller.identity.name, str(told))
        status = status_of(told)
        self._metrics.served(rpc, status.name)
        await context.abort(
            status, str(told)[:1000], trailing_metadata=((TRAILER, detail_of(told).SerializeToString()),)
        )
        raise asyncio.CancelledError  # abort() raises; this line is for the type checker


def _sized(message: M, rpc: str, policy: Policy) -> M:
    size = message.ByteSize()
    if size > policy.max_message:
        raise LimitError(f"a message of {rpc} has {size} bytes", why=f"the limit is {policy.max_message}")
    return message


async def _sized_stream(messages: AsyncIterator[M], rpc: str, policy: Policy) -> AsyncIterator[M]:
    async for message in messages:
        yield _sized(message, rpc, policy)
