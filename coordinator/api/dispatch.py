"""What every call goes through: identity, role, limits, sizes; and the telling of errors.

Handlers are plain coroutines that take a ``Call`` and raise errors of the one tree. They are bound to the
RPCs of the service descriptor: an RPC without handler or policy stops the service from starting.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
import structlog
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2

from cipherward.clock import Clock
from cipherward.coordinator.api.errors import TRAILER, InternalError, detail_of, status_of
from cipherward.coordinator.api.limits import Incoming, Limits, bounded, idling
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
SERVICE = pb.DESCRIPTOR.services_by_name["Coordinator"]
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
RPCS: dict[str, MethodDescriptor] = {
    **{method.name: method for method in SERVICE.methods},
    **{f"Health.{name}": _HEALTH.methods_by_name[name] for name in ("Check", "Watch")},
}
"""What is served, by its name in the tables. No RPC streams both ways."""


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
Context = grpc.aio.ServicerContext[Any, Any]

RECHECK_SECONDS = 1.0
"""A stream may live for weeks: who was revoked or has expired meanwhile is cut off after this time at most, counted
from the next message either way."""
ABORT_SECONDS = 2.0
"""For a caller to take the reason of its refusal. One that reads nothing is cut off without."""


def _serialise(message: Message) -> bytes:
    return message.SerializeToString()


class Dispatcher:
    """Wraps handlers for gRPC. To gRPC every call streams both ways: so the caller is known, and counted, before
    any message of it is read, and the waiting for messages is under the policy table's limits."""

    def __init__(
        self, verifier: PeerVerifier, limits: Limits, presence: Presence, metrics: Metrics, clock: Clock
    ) -> None:
        self._verifier, self._limits, self._presence, self._metrics = verifier, limits, presence, metrics
        self._clock = clock

    def handlers(self, implemented: Mapping[str, Unary | Streaming]) -> list[grpc.GenericRpcHandler]:
        """All RPCs of the services. UsageError if one has no policy or no handler: nothing is then served."""
        for what, names in (("policy", POLICIES.keys()), ("handler", implemented.keys())):
            if odd := sorted(RPCS.keys() ^ names):
                raise UsageError(f"the service and its {what} table differ in {', '.join(odd)}")
        made: defaultdict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = defaultdict(dict)
        for name, method in RPCS.items():
            made[method.containing_service.full_name][method.name] = grpc.stream_stream_rpc_method_handler(
                self._serve(name, method, implemented[name]),
                request_deserializer=None,  # sizes first
                response_serializer=_serialise,
            )
        return [grpc.method_handlers_generic_handler(service, each) for service, each in made.items()]

    def _serve(self, rpc: str, method: MethodDescriptor, handler: Any) -> Callable[..., Awaitable[None]]:
        parse = GetMessageClass(method.input_type).FromString

        async def serve(messages: AsyncIterator[bytes], context: Context) -> None:
            caller: Peer | None = None
            try:
                policy = POLICIES[rpc]
                caller = self._authenticate(rpc, policy, context)
                with self._limits.admit(str(caller.identity), rpc, policy), self._metrics.opened(rpc):
                    alive = self._still_in_force(context)
                    incoming = Incoming(messages, parse, rpc, policy, alive)
                    try:
                        request = incoming if method.client_streaming else await incoming.only()
                        reply = handler(Call(rpc, caller), request)
                        if method.server_streaming:
                            work: Awaitable[None] = self._stream(rpc, policy, reply, context, alive)
                        else:
                            work = self._answer(rpc, policy, reply, context)
                        await bounded(rpc, policy, work)
                    finally:
                        await incoming.close()
                self._metrics.served(rpc, "OK")
            except Exception as error:  # noqa: BLE001  told to the caller, logged; the service goes on
                await self._refuse(rpc, caller, error, context)

        return serve

    async def _answer(self, rpc: str, policy: Policy, reply: Awaitable[Message], context: Context) -> None:
        await idling(rpc, policy, context.write(await reply))

    async def _stream(
        self,
        rpc: str,
        policy: Policy,
        replies: AsyncGenerator[Message, None],
        context: Context,
        alive: Callable[[], None],
    ) -> None:
        async with aclosing(replies):
            async for reply in replies:
                alive()
                await idling(rpc, policy, context.write(reply))

    def _still_in_force(self, context: Context) -> Callable[[], None]:
        """Raises IdentityError once the caller is revoked or expired; looks once in a while."""
        checked = self._clock.monotonic()

        def alive() -> None:
            nonlocal checked
            now = self._clock.monotonic()
            if now - checked >= RECHECK_SECONDS:
                checked = now
                self._verifier.verify(context.auth_context())

        return alive

    def _authenticate(self, rpc: str, policy: Policy, context: Context) -> Peer:
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
        context: Context,
    ) -> NoReturn:
        who = str(caller.identity) if caller else "unknown"
        if isinstance(error, CipherwardError):
            told = error
            # Its frames hold the message that was refused, in a cycle: see ``Incoming.close``.
            error.__traceback__ = error.__context__ = error.__cause__ = None
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
        if isinstance(told, LimitError) and told.limit:
            self._metrics.limited(rpc, told.limit)
        trailer = ((TRAILER, detail_of(told).SerializeToString()),)
        with suppress(TimeoutError):
            async with asyncio.timeout(ABORT_SECONDS):
                await context.abort(status, str(told)[:1000], trailing_metadata=trailer)
        raise asyncio.CancelledError  # it reads nothing: gRPC resets the stream when nobody serves it
