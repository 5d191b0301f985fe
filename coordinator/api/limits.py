"""Calls counted per caller and RPC, and the messages of a call, against the policy table."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.message import DecodeError, Message

from cipherward.clock import Clock
from cipherward.coordinator.api.policy import CALLER_OPEN_CALLS, Policy, size
from cipherward.errors import FormatError, LimitError

_FORGET_ABOVE = 20_000  # callers are members: more buckets than this are full ones of long ago
M = TypeVar("M", bound=Message)
T = TypeVar("T")


def exceeded(rpc: str, limit: str, what: str, why: str, fix: str) -> LimitError:
    """The error that names the limit: ``limit`` is a name from the policy table."""
    error = LimitError(what, why=f"the limit {limit} of {rpc} is {why}", fix=fix)
    error.limit = limit
    return error


@dataclass
class _Bucket:
    tokens: float
    filled_at: float
    open_calls: int = 0


class Limits:
    """Token buckets and open calls. Only used from the event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str, str], _Bucket] = {}
        self._open: defaultdict[str, int] = defaultdict(int)

    @contextmanager
    def admit(self, caller: str, rpc: str, policy: Policy) -> Iterator[None]:
        """Let one call in for as long as the context lasts; raises LimitError."""
        now = self._clock.monotonic()
        bucket = self._buckets.get((caller, rpc))
        if bucket is None:
            if len(self._buckets) > _FORGET_ABOVE:
                self._buckets = {key: b for key, b in self._buckets.items() if b.open_calls}
            bucket = self._buckets[caller, rpc] = _Bucket(policy.burst, now)
        bucket.tokens = min(policy.burst, bucket.tokens + (now - bucket.filled_at) * policy.per_second)
        bucket.filled_at = now
        if bucket.tokens < 1:
            raise exceeded(
                rpc,
                "per_second",
                f"{rpc} is called too often",
                f"{policy.per_second:g} a caller, after a burst of {policy.burst}",
                "Wait and try again",
            )
        bucket.tokens -= 1
        if bucket.open_calls >= policy.open_calls:
            raise exceeded(
                rpc,
                "open_calls",
                f"too many {rpc} calls are open",
                f"{policy.open_calls} a caller",
                "Close one first",
            )
        if self._open[caller] >= CALLER_OPEN_CALLS:
            raise exceeded(
                "a caller",
                "caller_open_calls",
                f"{caller} has too many calls open",
                f"{CALLER_OPEN_CALLS}",
                "Close one first",
            )
        bucket.open_calls += 1
        self._open[caller] += 1
        try:
            yield
        finally:
            bucket.open_calls -= 1
            self._open[caller] -= 1
            if not self._open[caller]:
                del self._open[caller]


class Incoming(Generic[M]):
    """The caller's messages, each looked at for its size before it is parsed; waited for no longer than the row
    allows, and not beyond the row's total. ``alive`` is called before each: it raises for a caller that was
    revoked or has expired since.

    Iteration raises LimitError, FormatError for bytes that are no such message, and what ``alive`` raises.
    """

    def __init__(
        self,
        messages: AsyncIterator[bytes],
        parse: Callable[[bytes], M],
        rpc: str,
        policy: Policy,
        alive: Callable[[], object],
    ) -> None:
        self._messages = aiter(messages)
        self._parse, self._rpc, self._policy, self._alive = parse, rpc, policy, alive
        self.total = 0
        """Bytes so far."""
        self._idle = _IdleTimer(policy.idle_seconds)

    def __aiter__(self) -> Incoming[M]:
        return self

    async def __anext__(self) -> M:
        policy, rpc = self._policy, self._rpc
        self._idle.start()
        try:
            content = await anext(self._messages)
        except asyncio.CancelledError:
            if self._idle.expired():
                raise _idle(rpc, policy) from None
            raise
        finally:
            self._idle.stop()
        self._alive()
        if len(content) > policy.max_message:
            raise exceeded(
                rpc,
                "max_message",
                f"a message of {rpc} has {len(content)} bytes",
                size(policy.max_message),
                "",
            )
        self.total += len(content)
        if policy.max_total is not None and self.total > policy.max_total:
            raise exceeded(
                rpc, "max_total", f"a call of {rpc} brought {self.total} bytes", size(policy.max_total), ""
            )
        try:
            return self._parse(content)
        except DecodeError as error:
            raise FormatError(f"a message of {rpc} cannot be read", why="it is not of its type") from error

    async def close(self) -> None:
        """Read no more. gRPC's iterator holds its last message in a cycle: without this, megabytes a call until the
        collector comes by, which counts objects and not bytes."""
        if isinstance(self._messages, AsyncGenerator):
            with suppress(RuntimeError):  # it is waited for by a task that was cancelled, and ends with it
                await self._messages.aclose()

    async def only(self) -> M:
        """The one message of a call that does not stream."""
        try:
            return await anext(self)
        except StopAsyncIteration:
            raise FormatError(f"a call of {self._rpc} came without its message") from None


async def idling(rpc: str, policy: Policy, turn: Awaitable[T]) -> T:
    """Wait for the caller; raises LimitError when it takes longer than the row's idle time."""
    timer = asyncio.timeout(policy.idle_seconds)
    try:
        async with timer:
            return await turn
    except TimeoutError:
        if not timer.expired():
            raise
        raise _idle(rpc, policy) from None


def _idle(rpc: str, policy: Policy) -> LimitError:
    return exceeded(
        rpc,
        "idle_seconds",
        f"nothing moved on a call of {rpc}",
        f"{policy.idle_seconds:g}",
        "Call again: what was stored is kept",
    )


class _IdleTimer:
    """As ``asyncio.timeout`` around each of many short waits of a task, with one timer for all of them: an upload
    has thousands of messages a second."""

    def __init__(self, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._seconds, self._since, self._armed, self._cancelled = seconds, 0.0, False, False
        self._task: asyncio.Task[object] | None = None

    def start(self) -> None:
        """A wait of this task begins."""
        self._since, self._task = self._loop.time(), asyncio.current_task(self._loop)
        if not self._armed:
            self._arm(self._since + self._seconds)

    def stop(self) -> None:
        """It has ended."""
        self._task = None

    def expired(self) -> bool:
        """Whether this wait's cancellation was the timer's, which ends here; any other one goes on."""
        task, mine = self._task, self._cancelled
        self._cancelled = False
        return mine and task is not None and task.uncancel() == 0

    def _arm(self, at: float) -> None:
        self._armed = True
        self._loop.call_at(at, self._look)

    def _look(self) -> None:
        self._armed = False
        if self._task is None:
            return  # not waiting: the next wait arms it again
        due = self._since + self._seconds
        if self._loop.time() < due:
            self._arm(due)
        else:
            self._cancelled = True
            self._task.cancel()


async def bounded(rpc: str, policy: Policy, work: Awaitable[T]) -> T:
    """The whole of a streaming call; raises LimitError when it takes longer than the row allows."""
    timer = asyncio.timeout(policy.max_seconds)
    try:
        async with timer:
            return await work
    except TimeoutError:
        if not timer.expired():
            raise
        raise exceeded(
            rpc,
            "max_seconds",
            f"a call of {rpc} took too long",
            f"{policy.max_seconds:g}",
            "Call again: what was stored is kept",
        ) from None
