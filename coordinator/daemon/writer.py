"""One thread for the database. All reads and writes are in its order: what one transaction decides, the next
one sees, and the event loop never waits for the disk."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from cipherward.coordinator.store.database import Store, Transaction
from cipherward.errors import OutageError

T = TypeVar("T")

GROUP = 64
"""Transactions that share a commit, at most."""

_Waiting = tuple[Callable[[Transaction], Any], "Future[Any]"]


class Writer:
    """Runs functions in the store's thread.

    Transactions that wait behind each other share one commit, and are answered after it: under load the disk is
    synced once for many of them.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._lock = threading.Lock()
        self._group: list[_Waiting] | None = None  # is submitted; takes more until the thread comes to it

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Run ``function`` in the store's thread; for callers in other threads."""
        with self._lock:
            self._group = None  # transactions that come later are run later
            return self._thread.submit(function)

    async def run(self, function: Callable[[], T]) -> T:
        """Run ``function`` in the store's thread. It runs to its end even if the caller is cancelled."""
        return await asyncio.wrap_future(self.submit(function))

    async def transaction(self, function: Callable[[Transaction], T]) -> T:
        """Run ``function`` within a transaction, and return when that is committed.

        It must have no effect but there: it is run again, by itself, if another one that shared its commit failed.
        """
        result: Future[T] = Future()
        with self._lock:
            if self._group is None or len(self._group) >= GROUP:
                self._group = []
                self._thread.submit(self._commit, self._group)
            self._group.append((function, result))
        return await asyncio.wrap_future(result)

    def _commit(self, group: list[_Waiting]) -> None:
        with self._lock:
            if self._group is group:
                self._group = None
        asked = [(function, result) for function, result in group if result.set_running_or_notify_cancel()]
        if len(asked) < 2 or not self._together(asked):
            for one in asked:
                self._alone(*one)

    def _together(self, asked: list[_Waiting]) -> bool:
        """One commit for all; False if that did not work, nothing has happened then."""
        try:
            with self._store.transaction() as t:
                values = [function(t) for function, _ in asked]
        except OutageError as error:  # the database's: each of them would wait for it in vain
            for _, result in asked:
                result.set_exception(error)
        except Exception:  # noqa: BLE001  one's own: it is raised again for that one
            return False
        else:
            for (_, result), value in zip(asked, values, strict=True):
                result.set_result(value)
        return True

    def _alone(self, function: Callable[[Transaction], Any], result: Future[Any]) -> None:
        try:
            with self._store.transaction() as t:
                value = function(t)
        except BaseException as error:  # noqa: BLE001  the caller's
            result.set_exception(error)
        else:
            result.set_result(value)

    async def check(self) -> None:
        """Whether the database answers, and is still this process's alone; EnvironmentProblem if not.

        An idle service would not find out otherwise that another one has taken over.
        """
        await self.transaction(lambda _t: None)

    def close(self) -> None:
        """Finish what was submitted, then close the store."""
        self._thread.shutdown(wait=True)
        self._store.close()
