"""Work in several threads, with results in order and little of it in flight."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from itertools import islice
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TypeVar

MOST_THREADS = 4
_AHEAD = 2
"""Jobs in flight a thread."""

Worker = TypeVar("Worker")
Job = TypeVar("Job")
Result = TypeVar("Result")


def default_threads() -> int:
    """One a processor, at most four: a hospital's machine has other work."""
    return min(MOST_THREADS, os.cpu_count() or 1)


def in_order(
    work: Callable[[Worker, Job], Result], jobs: Iterable[Job], workers: Sequence[Worker]
) -> Generator[Result]:
    """``work(worker, job)`` for each job, in the jobs' order, in one thread a worker.

    The caller's thread is one of them and works whenever the next result is not there yet: if it only waited,
    waking it for every result would cost the others more than it helps. The first error in the jobs' order is
    raised. An abandoned iterator ends its threads.
    """
    own, others = workers[0], workers[1:]
    if not others:
        for job in jobs:
            yield work(own, job)
        return

    todo: SimpleQueue[tuple[Future[Result], Job] | None] = SimpleQueue()

    def settle(worker: Worker, future: Future[Result], job: Job) -> None:
        try:
            future.set_result(work(worker, job))
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
            future.set_exception(error)

    def serve(worker: Worker) -> None:
        while (task := todo.get()) is not None:
            settle(worker, *task)

    threads = [Thread(target=serve, args=(worker,), name="quorum", daemon=True) for worker in others]
    for thread in threads:
        thread.start()
    waiting: deque[Future[Result]] = deque()
    left = iter(jobs)
    try:
        while True:
            for job in islice(left, _AHEAD * len(workers) - len(waiting)):
                waiting.append(Future())
                todo.put((waiting[-1], job))
            if not waiting:
                return
            while not waiting[0].done() and (task := _take(todo)) is not None:
                settle(own, *task)
            yield waiting.popleft().result()
    finally:
        while _take(todo) is not None:
            pass
        for _ in threads:
            todo.put(None)
        for thread in threads:
            thread.join()


def _take(queue: SimpleQueue[tuple[Future[Result], Job] | None]) -> tuple[Future[Result], Job] | None:
    try:
        return queue.get_nowait()
    except Empty:
        return None
