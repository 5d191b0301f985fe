"""The running coordinator: put together, served until a signal, taken apart within 15 seconds."""

from __future__ import annotations

import asyncio
import ctypes
import signal
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog

from cipherward.clock import Clock, SystemClock
from cipherward.coordinator.aggregation.local import LocalEngine
from cipherward.coordinator.api.dispatch import Dispatcher
from cipherward.coordinator.api.health import Health
from cipherward.coordinator.api.inspection import Inspection
from cipherward.coordinator.api.limits import Limits
from cipherward.coordinator.api.service import implementation, new_server
from cipherward.coordinator.blobs.blobs import Blobs
from cipherward.coordinator.daemon.core import Core
from cipherward.coordinator.daemon.folder import (
    blobs_url,
    database_url,
    remove_address,
    write_address,
)
from cipherward.coordinator.daemon.metrics import Metrics
from cipherward.coordinator.daemon.presence import Presence
from cipherward.coordinator.daemon.readiness import Readiness
from cipherward.coordinator.daemon.studies import Studies
from cipherward.coordinator.daemon.sums import Sums
from cipherward.coordinator.daemon.traffic import Traffic
from cipherward.coordinator.daemon.upkeep import Upkeep
from cipherward.coordinator.daemon.watching import Watching
from cipherward.coordinator.daemon.writer import Writer
from cipherward.coordinator.store.database import Store
from cipherward.crypto.pki.peers import PeerVerifier
from cipherward.crypto.pki.store import load_member
from cipherward.durable import FolderLock
from cipherward.errors import EnvironmentProblem, UsageError
from cipherward.ids import Role
from cipherward.monitoring import Monitoring

log = structlog.get_logger()

GRACE_SECONDS = 8.0
"""For calls in progress, once no new ones are taken. With the rest of the shutdown less than 15 s."""
_M_ARENA_MAX, _M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -8, -1, -3


@dataclass(frozen=True)
class Settings:
    """How to run. ``listen`` is HOST:PORT, port 0 for any, also of ``metrics_port``; the URLs default to the folder."""

    folder: Path
    listen: str
    metrics_port: int | None = None
    database: str = ""
    blobs: str = ""
    keep_rounds: int | None = None
    """Ended rounds whose updates are kept for audits; None: ``retention.KEPT_ROUNDS``."""


class Service:
    """One coordinator process."""

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        self._settings, self._clock = settings, clock or SystemClock()
        self._metrics = Metrics()
        self.address = ""

    async def run(self, ready: Callable[[str], None], stop: asyncio.Event) -> None:
        """Serve until ``stop`` is set; ``ready`` is called with HOST:PORT once calls are taken.

        Raises EnvironmentProblem (port, folder, disk), VerificationError or IdentityError (own credentials).
        """
        folder = self._settings.folder
        member = load_member(folder, Role.COORDINATOR, self._clock.now())
        for warning in member.warnings(self._clock.now()):
            log.warning("credential", reason=warning)
        lock = FolderLock(folder, "a coordinator")
        try:
            remove_address(folder)  # of a process that was killed
            store = Store(self._settings.database or database_url(folder))
            writer = Writer(store)
            loop = asyncio.get_running_loop()
            store.when_lost(lambda: loop.call_soon_threadsafe(stop.set))
            try:
                with closing(Inspection()) as inspection:
                    blobs = Blobs(self._settings.blobs or blobs_url(folder))
                    studies = Studies(member, store, blobs, writer, self._clock, self._settings.keep_rounds)
                    studies.on_change.append(self._metrics.moved)
                    core = Core(
                        member,
                        self._clock,
                        blobs,
                        writer,
                        studies,
                        Watching(studies, self._clock),
                        Presence(self._clock),
                        Traffic(writer),
                        self._metrics,
                        inspection,
                    )
                    await self._serve(core, Sums(studies, store, writer, LocalEngine(blobs)), ready, stop)
                    store.require_own()
            finally:
                await asyncio.to_thread(writer.close)
        finally:
            lock.release()

    async def _serve(self, core: Core, sums: Sums, ready: Callable[[str], None], stop: asyncio.Event) -> None:
        verifier = PeerVerifier(core.member.anchor, core.member.status, self._clock)
        dispatcher = Dispatcher(verifier, Limits(self._clock), core.presence, self._metrics, self._clock)
        readiness = Readiness(core, self._settings.folder)
        health = Health(readiness, core.watching.draining)
        server = new_server()
        server.add_generic_rpc_handlers(
            dispatcher.handlers({**implementation(core), **health.handlers()}),
        )
        port = _bind(server, self._settings.listen, core.member.server_credentials())
        await core.studies.load()
        for view in core.studies.views:
            self._metrics.moved(None, view)
        monitoring = self._monitoring(readiness)
        tasks = Upkeep(core, self._settings.folder, readiness).start()
        try:
            await server.start()
            await readiness.serve(serving=True)
            self.address = f"{self._settings.listen.rpartition(':')[0]}:{port}"
            write_address(self._settings.folder, self.address)
            log.info("serving", address=self.address, coordinator=core.member.identity.name)
            ready(self.address)
            await stop.wait()
            log.info("stopping")
        finally:
            await _quietly(lambda: asyncio.to_thread(remove_address, self._settings.folder))
            core.watching.drain()
            await readiness.serve(serving=False)
            await server.stop(GRACE_SECONDS)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await sums.stop()
            await _quietly(core.traffic.flush)
            if monitoring is not None:
                await asyncio.to_thread(monitoring.close)
            log.info("stopped")

    def _monitoring(self, readiness: Readiness) -> Monitoring | None:
        port = self._settings.metrics_port
        if port is None:
            return None
        served = Monitoring(port, self._metrics.registry, readiness.alive, readiness.look_from_outside)
        log.info("monitoring", port=served.port)
        return served


async def _quietly(action: Callable[[], Awaitable[None]]) -> None:
    try:
        await action()
    except EnvironmentProblem as error:
        log.error("not done at the end", reason=str(error))


def _bind(server: grpc.aio.Server, listen: str, credentials: grpc.ServerCredentials) -> int:
    try:
        port = server.add_secure_port(listen, credentials)
    except RuntimeError as error:
        port = 0
        cause: RuntimeError | None = error
    else:
        cause = None
    if port == 0:
        raise EnvironmentProblem(
            f"cannot listen on {listen}",
            why="the port is in use, or the address is not this machine's",
            fix="Stop the other service, or choose another with --listen HOST:PORT",
        ) from cause
    return port


def check_listen(listen: str) -> None:
    """Raises UsageError unless it is HOST:PORT."""
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise UsageError(
            f"cannot listen on {listen[:120]!r}", why="it must be HOST:PORT", fix="E.g. 0.0.0.0:7443"
        )


def limit_arenas() -> None:
    """As MALLOC_ARENA_MAX=1, where the C library is glibc: without it each thread keeps memory of its own. Chunks
    come from that one arena, which keeps 64 MiB: or else each of them costs as many page faults as it has pages."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_ARENA_MAX, 1)
        libc.mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)
        libc.mallopt(_M_TRIM_THRESHOLD, 64 * 2**20)


def run(settings: Settings, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT. Raises what ``Service.run`` raises."""
    limit_arenas()

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await Service(settings).run(ready, stop)

    asyncio.run(main())
