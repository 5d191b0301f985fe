"""The store's thread: transactions that wait share a commit, and each is told only what has come true."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from cipherward.coordinator.daemon.writer import GROUP, Writer
from cipherward.coordinator.store.chunks import Segment
from cipherward.coordinator.store.database import Store, Transaction
from cipherward.errors import ConflictError, EnvironmentProblem, OutageError


class Watched:
    """A writer, how many transactions its store has begun, and what becomes of the next ones."""

    def __init__(self, url: str) -> None:
        self.store = Store(url)
        self.begun, self.commits, self.failures = 0, 0, list[Exception]()
        original = self.store.transaction

        @contextmanager
        def transaction() -> Iterator[Transaction]:
            self.begun += 1
            with original() as t:
                yield t
                if self.failures:
                    raise self.failures.pop(0)
            self.commits += 1

        self.store.transaction = transaction  # type: ignore[method-assign]
        self.writer = Writer(self.store)

    async def behind(self, *calls: Coroutine[Any, Any, Any]) -> list[Any]:
        """What came of these, all of which wait until the thread is free."""
        free = threading.Event()
        first = asyncio.create_task(self.writer.run(free.wait))
        tasks = [asyncio.create_task(call) for call in calls]
        await asyncio.sleep(0.05)
        free.set()
        await first
        return await asyncio.gather(*tasks, return_exceptions=True)

    def add(self, name: str) -> Coroutine[Any, Any, int]:
        """Store a chunk under that name; how many it has then."""

        def add(t: Transaction) -> int:
            t.chunks.add(name, Segment(t.chunks.count(name), f"blob-{name}", (1,), (bytes(32),)))
            return t.chunks.count(name)

        return self.writer.transaction(add)

    def stored(self) -> set[str]:
        """Names of what is there."""
        with self.store.transaction() as t:
            return set(t.chunks.names(""))


@pytest.fixture
def watched(database_url: str) -> Iterator[Watched]:
    made = Watched(database_url)
    yield made
    made.writer.close()


async def _conflict(watched: Watched, note: Callable[[], object]) -> None:
    def add_and_fail(t: Transaction) -> None:
        note()
        t.chunks.add("refused", Segment(0, "blob", (1,), (bytes(32),)))
        raise ConflictError("no")

    await watched.writer.transaction(add_and_fail)


async def test_transactions_that_wait_share_a_commit(watched: Watched) -> None:
    found = await watched.behind(*(watched.add(f"n{number}") for number in range(GROUP + 10)))
    assert found == [1] * (GROUP + 10)
    assert watched.commits == 2
    assert len(watched.stored()) == GROUP + 10


async def test_they_see_what_those_before_them_did(watched: Watched) -> None:
    assert await watched.behind(*(watched.add("same") for _ in range(5))) == [1, 2, 3, 4, 5]
    assert watched.commits == 1


async def test_what_else_the_thread_is_asked_keeps_its_place(watched: Watched) -> None:
    def look() -> int:
        with watched.store.transaction() as t:
            return t.chunks.count("same")

    found = await watched.behind(watched.add("same"), watched.writer.run(look), watched.add("same"))
    assert found == [1, 1, 2]


async def test_one_that_fails_fails_alone(watched: Watched) -> None:
    times: list[None] = []
    failing = _conflict(watched, lambda: times.append(None))
    first, refused, last = await watched.behind(watched.add("a"), failing, watched.add("b"))
    assert (first, last) == (1, 1)
    assert isinstance(refused, ConflictError)
    assert len(times) == 2  # together, then by itself
    assert watched.stored() == {"a", "b"}


async def test_a_commit_that_fails_is_nobodys_success(watched: Watched) -> None:
    full = EnvironmentProblem("the coordinator's database cannot be used", why="the disk is full")
    watched.failures = [full, full, full]  # together, and twice of the three by themselves
    found = await watched.behind(watched.add("a"), watched.add("b"), watched.add("c"))
    assert found == [full, full, 1]
    assert watched.stored() == {"c"}


async def test_a_database_that_is_away_is_waited_for_once(watched: Watched) -> None:
    away = OutageError("the coordinator's database cannot be used", why="it does not answer")
    watched.failures = [away]
    assert await watched.behind(watched.add("a"), watched.add("b")) == [away, away]
    assert watched.begun == 1
    assert watched.stored() == set()


async def test_one_whose_caller_has_gone_is_left_out(watched: Watched) -> None:
    gone = asyncio.create_task(watched.add("gone"))
    free = threading.Event()
    first = asyncio.create_task(watched.writer.run(free.wait))
    await asyncio.sleep(0.05)  # "gone" came first, and is done
    waiting = asyncio.create_task(watched.add("cancelled"))
    kept = asyncio.create_task(watched.add("kept"))
    await asyncio.sleep(0.05)
    waiting.cancel()
    free.set()
    await first
    assert (await gone, await kept) == (1, 1)
    assert watched.stored() == {"gone", "kept"}
