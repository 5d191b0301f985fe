"""Whether the coordinator can do its work now: a list of checks, each really done, each with a reason when it
fails. A full disk makes it not ready, room on it makes it ready again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import structlog

from cipherward.coordinator.daemon.core import Core
from cipherward.coordinator.store.chunks import Segment
from cipherward.coordinator.store.database import Transaction
from cipherward.errors import CipherwardError, EnvironmentProblem
from cipherward.monitoring import CHECK_SECONDS, LEAST_FREE_BYTES, free_bytes

log = structlog.get_logger()
T = TypeVar("T")

FRESH_SECONDS = 1.0
"""A look is not repeated for this long."""
CHECKS = ("serving", "credential", "disk", "store", "blobs", "uploads")
_NOT_SERVING = {**dict.fromkeys(CHECKS, ""), "serving": "the service is starting or stopping"}
_PROBE = "readiness/probe"


class Readiness:
    """The checks by name, each empty or the reason that it fails. Only used from the event loop."""

    def __init__(self, core: Core, folder: Path) -> None:
        self._core, self._folder = core, folder
        self._serving = False
        self._looked_at = float("-inf")
        self._looking = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._trying: dict[str, asyncio.Task[None]] = {}
        self.found = _NOT_SERVING
        self.changed = asyncio.Event()
        """Set, and made anew, whenever ``ready`` changes."""

    @property
    def ready(self) -> bool:
        """No check fails."""
        return not any(self.found.values())

    async def serve(self, *, serving: bool) -> None:
        """Calls are taken from now on, or no longer. The end does not wait for a look."""
        self._serving = serving
        if serving:
            await self.look()
        else:
            self._show(_NOT_SERVING)

    async def look(self) -> dict[str, str]:
        """Do all checks, unless that was done just now."""
        async with self._looking:
            now = self._core.clock.monotonic()
            if self._serving and now - self._looked_at >= FRESH_SECONDS:
                found = await self._look()
                if self._serving:
                    self._looked_at = now
                    self._show(found)
        return self.found

    def alive(self) -> dict[str, str]:
        """Whether the event loop turns and the store's thread answers. From another thread; raises TimeoutError."""
        self._wait(self._core.writer.run(lambda: None), CHECK_SECONDS)
        return {"event loop": "", "store thread": ""}

    def look_from_outside(self) -> dict[str, str]:
        """``look`` from another thread; raises TimeoutError if the event loop does not turn."""
        return self._wait(self.look(), 3 * CHECK_SECONDS)  # one that is in progress, its own, and some time

    def _wait(self, answer: Coroutine[Any, Any, T], seconds: float) -> T:
        return asyncio.run_coroutine_threadsafe(answer, self._loop).result(seconds)

    def _show(self, found: dict[str, str]) -> None:
        before, self.found = self.ready, found
        self._core.metrics.readiness(self.ready)
        if self.ready == before:
            return
        if self.ready:
            log.info("ready")
        elif self._serving:
            failed = {name: reason for name, reason in found.items() if reason}
            log.warning("not ready", checks=sorted(failed), reason="; ".join(failed.values()))
        self.changed.set()
        self.changed = asyncio.Event()

    async def _look(self) -> dict[str, str]:
        checks = {
            "credential": self._credential,
            "disk": self._disk,
            "store": self._store,
            "blobs": self._blobs,
            "uploads": self._uploads,
        }
        found = await asyncio.gather(*(self._try(name, check) for name, check in checks.items()))
        return {"serving": "", **dict(zip(checks, found, strict=True))}

    async def _try(self, name: str, check: Callable[[], Coroutine[Any, Any, None]]) -> str:
        """Why it fails. One that hangs is not begun again: it would take one thread after the other."""
        task = self._trying.get(name)
        if task is None or task.done():
            task = self._trying[name] = asyncio.create_task(check())
            task.add_done_callback(
                lambda done: done.cancelled() or done.exception()
            )  # it may end when nobody looks
        await asyncio.wait({task}, timeout=CHECK_SECONDS)
        if not task.done():
            return f"no answer within {CHECK_SECONDS:g} s"
        error = task.exception()
        if error is not None and not isinstance(error, CipherwardError):
            raise error
        return "" if error is None else str(error)

    async def _credential(self) -> None:
        member = self._core.member
        member.credential.check(self._core.clock.now(), member.status)

    async def _disk(self) -> None:
        free = await asyncio.to_thread(free_bytes, self._folder)
        if free < LEAST_FREE_BYTES:
            raise EnvironmentProblem(f"{free // 2**20} MiB are free")

    async def _store(self) -> None:
        """A durable write, in the order of all others: it also shows that the store's thread answers."""

        def write(t: Transaction) -> None:
            t.chunks.drop(_PROBE)
            t.chunks.add(_PROBE, Segment(0, "", (0,), (bytes(32),)))
            t.chunks.drop(_PROBE)

        await self._core.writer.transaction(write)

    async def _blobs(self) -> None:
        blobs = self._core.blobs
        await asyncio.to_thread(lambda: blobs.delete([blobs.put([bytes(4096)])]))

    async def _uploads(self) -> None:
        await asyncio.to_thread(self._core.inspection.probe)
