"""One thread for the database. All reads and writes are in its order: what one transaction decides, the next
one sees, and the event loop never waits for the disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from cipherward.coordinator.store.database import Store, Transaction

T = TypeVar("T")


class Writer:
    """Runs functions in the store's thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Run ``function`` in the store's thread; for callers in other threads."""
        return self._thread.submit(function)

    async def run(self, function: Callable[[], T]) -> T:
        """Run ``function`` in the store's thread. It runs to its end even if the caller is cancelled."""
        return await asyncio.wrap_future(self._thread.submit(function))

    async def transaction(self, function: Callable[[Transaction], T]) -> T:
        """Run ``function`` as one transaction."""

        def run() -> T:
            with self._store.transaction() as t:
                return function(t)

        return await self.run(run)

    async def check(self) -> None:
        """Whether the database answers, and is still this process's alone; EnvironmentProblem if not.

        An idle service would not find out otherwise that another one has taken over.
        """
        await self.transaction(lambda _t: None)

    def close(self) -> None:
        """Finish what was submitted, then close the store."""
        self._thread.shutdown(wait=True)
        self._store.close()
