"""Runs the sums that the state machine asks for, one task per round, and tells it the outcome."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import structlog

from cipherward.coordinator.aggregation.base import Engine, Stopped, SumJob
from cipherward.coordinator.daemon.studies import Studies
from cipherward.coordinator.daemon.view import StudyView, sum_set, update_set
from cipherward.coordinator.daemon.writer import Writer
from cipherward.coordinator.rounds.effects import StartSum
from cipherward.coordinator.rounds.events import Event, SumFailed, Summed
from cipherward.coordinator.rounds.state import Phase
from cipherward.coordinator.store.chunks import ChunkSet, Segment
from cipherward.coordinator.store.database import Store
from cipherward.crypto import merkle
from cipherward.crypto.suites.base import ChunkAdder
from cipherward.crypto.suites.registry import suite
from cipherward.errors import CipherwardError, EnvironmentProblem, UnavailableError

log = structlog.get_logger()

WORKER_TRIES = 3
RETRY_SECONDS = 5.0


class Sums:
    """Sums in progress. They go on where they stopped: after a full disk, a lost worker, a restart."""

    def __init__(self, studies: Studies, store: Store, writer: Writer, engine: Engine) -> None:
        self._studies, self._store, self._writer, self._engine = studies, store, writer, engine
        self._tasks: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._stop = threading.Event()
        studies.start_sum = self.start

    def start(self, study: str, effect: StartSum) -> None:
        """Begin, unless that round's sum is running."""
        self._tasks = {key: task for key, task in self._tasks.items() if not task.done()}
        if (study, effect.round) not in self._tasks:
            self._tasks[study, effect.round] = asyncio.create_task(self._run(study, effect))

    async def stop(self) -> None:
        """Stop between two chunks; what is stored is kept."""
        self._stop.set()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _run(self, study: str, effect: StartSum) -> None:
        outcome = await self._until_done(study, effect)
        if outcome is not None:
            await self._retrying(lambda: self._studies.apply(study, outcome))

    async def _until_done(self, study: str, effect: StartSum) -> Event | None:
        tries = 0
        while not self._stop.is_set():
            view = self._studies.require(study)
            if view.state.phase is not Phase.SUM or view.state.round != effect.round:
                return None  # the study was aborted meanwhile
            try:
                total = await asyncio.to_thread(self._sum, view, effect)
            except Stopped:
                return None
            except EnvironmentProblem as error:
                log.error("sum waits", study=study, round=effect.round, reason=str(error))
            except UnavailableError as error:
                tries += 1
                log.error("sum worker lost", study=study, round=effect.round, reason=str(error), tries=tries)
                if tries >= WORKER_TRIES:
                    return SumFailed(effect.round, f"the sum could not be made: {error.what}")
            except CipherwardError as error:
                if self._moved_on(study, effect):
                    return None  # the study was aborted meanwhile, and its updates were deleted
                log.error("sum failed", study=study, round=effect.round, reason=str(error))
                return SumFailed(effect.round, f"the sum could not be made: {error.what}")
            else:
                return Summed(effect.round, merkle.root(total.leaves()), total.count)
            await asyncio.sleep(RETRY_SECONDS)
        return None

    async def _retrying(self, action: Callable[[], Awaitable[object]]) -> None:
        while True:
            try:
                await action()
                return
            except EnvironmentProblem as error:
                log.error("sum not recorded", reason=str(error))
                await asyncio.sleep(RETRY_SECONDS)

    def _sum(self, view: StudyView, effect: StartSum) -> ChunkSet:
        version = view.version(effect.round)
        name = sum_set(view.name, effect.round)

        def load() -> tuple[list[ChunkSet], ChunkSet]:
            with self._store.transaction() as t:
                updates = [
                    t.chunks.load(update_set(view.name, effect.round, site, view.state.commits[site].attempt))
                    for site in effect.contributors
                ]
                return updates, t.chunks.load(name)

        def store(segment: Segment) -> None:
            def run() -> None:
                with self._store.transaction() as t:
                    t.chunks.add(name, segment)

            self._writer.submit(run).result()

        def adder() -> ChunkAdder:
            return suite(version.trust.manifest.suite.name).chunk_adder(version.params)

        updates, done = self._writer.submit(load).result()
        job = SumJob(updates, version.length, version.params.chunk_count(version.length), adder, done)
        return self._engine.run(job, store, lambda: self._stop.is_set() or self._moved_on(view.name, effect))

    def _moved_on(self, study: str, effect: StartSum) -> bool:
        state = self._studies.require(study).state
        return state.phase is not Phase.SUM or state.round != effect.round or not state.running
