"""Whether the coordinator can do its work now: a list of checks, each really done, each with a reason when it
fails. A full disk makes it not ready, room on it makes it ready again."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import structlog

from cipherward.coordinator.daemon.core import Core
from cipherward.coordinator.store.chunks import Segment
from cipherward.coordinator.store.database import Transaction
from cipherward.errors import CipherwardError
from cipherward.monitoring import CHECK_SECONDS, LEAST_FREE_BYTES, free_bytes

log = structlog.get_logger()
T = TypeVar("T")

FRESH_SECONDS = 1.0
"""A look is not repeated for this long."""
CHECKS = ("serving", "credential", "disk", "store", "blobs", "uploads")
_PROBE = "readiness/probe"


class Readiness:
    """The checks by name, each empty or the reason that it fails. Only used from the event loop."""

    def __init__(self, core: Core, folder: Path) -> None:
        self._core, self._folder = core, folder
        self._serving = False
        self._looked_at = float("-inf")
        self._looking = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self.found: dict[str, str] = dict.fromkeys(CHECKS, "not looked at yet")
        self.changed = asyncio.Event()
        """Set, and made anew, whenever ``ready`` changes."""

    @property
    def ready(self) -> bool:
        """No check fails."""
        return not any(self.found.values())

    async def serve(self, *, serving: bool) -> None:
        """Calls are taken from now on, or no longer."""
        self._serving = serving
        self._looked_at = float("-inf")
        await self.look()

    async def look(self) -> dict[str, str]:
        """Do all checks, unless that was done just now."""
        async with self._looking:
            now = self._core.clock.monotonic()
            if now - self._looked_at >= FRESH_SECONDS:
                before = self.ready
                self.found = await self._look()
                self._looked_at = now
                if self.ready != before:
                    self._tell()
        return self.found

    def alive(self) -> dict[str, str]:
        """Whether the event loop turns and the store's thread answers. From another thread; raises TimeoutError."""
        self._wait(self._core.writer.run(lambda: None))
        return {"event loop": "", "store thread": ""}

    def look_from_outside(self) -> dict[str, str]:
        """``look`` from another thread; raises TimeoutError."""
        return self._wait(self.look())

    def _wait(self, answer: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(answer, self._loop).result(CHECK_SECONDS)

    def _tell(self) -> None:
        if self.ready:
            log.info("ready")
        elif self._serving:
            failed = {name: reason for name, reason in self.found.items() if reason}
            log.warning("not ready", checks=sorted(failed), reason="; ".join(failed.values()))
        self.changed.set()
        self.changed = asyncio.Event()

    async def _look(self) -> dict[str, str]:
        if not self._serving:
            return {**dict.fromkeys(CHECKS, ""), "serving": "the service is starting or stopping"}
        free = await asyncio.to_thread(free_bytes, self._folder)
        return {
            "serving": "",
            "credential": self._credential(),
            "disk": "" if free >= LEAST_FREE_BYTES else f"{free // 2**20} MiB are free",
            "store": await self._store(),
            "blobs": await self._blobs(),
            "uploads": await self._uploads(),
        }

    def _credential(self) -> str:
        member = self._core.member
        try:
            member.credential.check(self._core.clock.now(), member.status)
        except CipherwardError as error:
            return str(error)
        return ""

    async def _store(self) -> str:
        """A durable write, in the order of all others: it also shows that the store's thread answers."""

        def write(t: Transaction) -> None:
            t.chunks.drop(_PROBE)
            t.chunks.add(_PROBE, Segment(0, "", (0,), (bytes(32),)))
            t.chunks.drop(_PROBE)

        try:
            await self._core.writer.transaction(write)
        except CipherwardError as error:
            return str(error)
        return ""

    async def _blobs(self) -> str:
        blobs = self._core.blobs

        def write() -> None:
            blobs.delete([blobs.put([bytes(4096)])])

        try:
            await asyncio.to_thread(write)
        except CipherwardError as error:
            return str(error)
        return ""

    async def _uploads(self) -> str:
        try:
            await asyncio.to_thread(self._core.inspection.probe)
        except CipherwardError as error:
            return str(error)
        return ""
