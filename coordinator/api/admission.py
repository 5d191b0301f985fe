"""Who may upload now. Memory is bounded by places, and no sender can keep others from theirs by being slow.

An upload begins in a fast place, where it is stored in whole segments: with more than a few of them memory grows
and nothing gets faster. One that does not fill a segment in time while others wait moves to a slow place: there are
more of these, each for a small part of a segment, for what limits such uploads is their own links.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType

from cipherward.coordinator.blobs.writer import SEGMENT_BYTES
from cipherward.errors import UnavailableError

FAST_PLACES, SLOW_PLACES = 16, 64
SLOW_BYTES = SEGMENT_BYTES // 4
"""What an upload in a slow place gathers before it is stored."""
PATIENCE_SECONDS = 2.0
"""For a segment in a fast place, while others wait for one."""
SLOW_SECONDS = 60.0
"""For ``SLOW_BYTES`` in a slow place, while others wait for one: then the upload is cut off, and may be resumed."""


Run = Callable[[int, float, Callable[[], bool]], Awaitable[bool]]
"""See ``Reception.run``."""


class Places:
    """So many at a time; the others wait in the order in which they came. Only used from the event loop."""

    def __init__(self, count: int) -> None:
        self._free = asyncio.Semaphore(count)
        self.waiting = 0

    async def __aenter__(self) -> None:
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._free.release()


class Admission:
    """The coordinator's places."""

    def __init__(self) -> None:
        self._fast, self._slow = Places(FAST_PLACES), Places(SLOW_PLACES)

    async def through(self, run: Run) -> None:
        """Let one upload run to its end; UnavailableError if it is too slow even for a slow place."""
        async with self._fast:
            if await run(SEGMENT_BYTES, PATIENCE_SECONDS, lambda: self._fast.waiting > 0):
                return
        async with self._slow:
            if not await run(SLOW_BYTES, SLOW_SECONDS, lambda: self._slow.waiting > 0):
                raise UnavailableError("the upload was cut off", why="it was too slow", fix="Resume it")
