"""What the service does by itself: keep deadlines, write figures down, read a newer status list."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from cipherward.coordinator.daemon.core import Core
from cipherward.coordinator.daemon.readiness import Readiness
from cipherward.coordinator.rounds.events import SitesRevoked
from cipherward.crypto.pki.armour import Kind, unarmour_signed
from cipherward.crypto.pki.member_files import STATUS_LIST
from cipherward.durable import read_file
from cipherward.errors import CipherwardError
from cipherward.monitoring import free_bytes

log = structlog.get_logger()

TICK_SECONDS = 0.25
FIGURES_SECONDS = 5.0
STATUS_SECONDS = 2.0
READY_SECONDS = 10.0
STORE_SECONDS = 2.0


class Upkeep:
    """Periodic tasks. One that fails is logged and tried again at its next turn."""

    def __init__(self, core: Core, folder: Path, readiness: Readiness) -> None:
        self._core, self._folder, self._readiness = core, folder, readiness
        self._status_file = folder / STATUS_LIST
        self._status_seen = b""
        self._asked: tuple[asyncio.Task[None], float] | None = None
        """What the store's thread has not answered yet, and since when."""

    def start(self) -> list[asyncio.Task[None]]:
        """Start them all."""
        return [
            asyncio.create_task(self._every(TICK_SECONDS, self._core.studies.tick)),
            asyncio.create_task(self._every(FIGURES_SECONDS, self._figures)),
            asyncio.create_task(self._every(STATUS_SECONDS, self._status_list)),
            asyncio.create_task(self._every(READY_SECONDS, self._readiness.look)),
            asyncio.create_task(self._every(STORE_SECONDS, self._core.writer.check)),
        ]

    async def _every(self, seconds: float, action: Callable[[], Awaitable[object]]) -> None:
        while True:
            try:
                await action()
            except CipherwardError as error:
                log.error("upkeep failed", reason=str(error))
            except Exception as error:
                log.error("upkeep failed", exc_info=error)
            await asyncio.sleep(seconds)

    async def _figures(self) -> None:
        core = self._core
        running = sum(view.state.running for view in core.studies.views)
        core.metrics.standing(core.presence.connected, running)
        free = await asyncio.to_thread(free_bytes, self._folder)
        core.metrics.machine(free=free, days=core.member.days_left(core.clock.now()))
        core.metrics.store_waited(await self._store_wait())
        if self._asked is None:
            await core.traffic.flush()

    async def _store_wait(self) -> float:
        """Seconds until the store's thread answers, or so far: one that hangs shows too."""
        if self._asked is None:
            answer = asyncio.create_task(self._core.writer.run(lambda: None))
            self._asked = (answer, self._core.clock.monotonic())
        answer, began = self._asked
        await asyncio.wait({answer}, timeout=FIGURES_SECONDS)
        if answer.done():
            self._asked = None
            answer.result()
        return self._core.clock.monotonic() - began

    async def _status_list(self) -> None:
        text = await asyncio.to_thread(read_file, self._status_file)
        if text != self._status_seen:
            self._status_seen = text
            if self._core.member.status.offer(unarmour_signed(Kind.STATUS_LIST, text)):
                log.info("status list", number=self._core.member.status.newest.number)
        for view in self._core.studies.views:
            revoked = self._core.studies.revoked_sites(view)
            if not revoked <= view.state.revoked:
                await self._core.studies.apply(view.name, SitesRevoked(revoked))
