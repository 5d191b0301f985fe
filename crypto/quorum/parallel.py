"""Work on chunks in several threads, with results in order and few chunks in flight."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
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
) -> Iterator[Result]:
    """``work(worker, job)`` for each job, in the jobs' order; a worker does one job at a time.

    With one worker it runs in the caller's thread. The first error in the jobs' order is raised.
    """
    if len(workers) == 1:
        for job in jobs:
            yield work(workers[0], job)
        return
    idle: SimpleQueue[Worker] = SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def run(job: Job) -> Result:
        worker = idle.get()
        try:
            return work(worker, job)
        finally:
            idle.put(worker)

    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(len(workers), "quorum") as pool:
        try:
            for job in jobs:
                waiting.append(pool.submit(run, job))
                if len(waiting) > _AHEAD * len(workers):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
