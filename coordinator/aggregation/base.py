"""What an engine is given and gives back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cipherward.coordinator.store.chunks import ChunkSet, Segment
from cipherward.crypto.suites.base import ChunkAdder


@dataclass(frozen=True, slots=True)
class SumJob:
    """The sum over U of one round. ``done`` is the part of the sum that an earlier run stored."""

    updates: Sequence[ChunkSet]  # in the order of the plan
    length: int  # values in each update
    chunk_count: int
    adder: Callable[[], ChunkAdder]
    done: ChunkSet


class Stopped(Exception):
    """The engine was asked to stop before the sum was complete; what it stored is kept."""


class Engine(Protocol):
    """Computes sums. Blocks: the caller runs it in a thread."""

    def run(self, job: SumJob, store: Callable[[Segment], None], stop: Callable[[], bool]) -> ChunkSet:
        """The complete sum, each segment passed to ``store`` as soon as it is durable.

        Adds chunk by chunk with memory that does not grow with the size of U or of the model, and may be run
        again after a crash: the bytes are the same. Every chunk that is added has the leaf hash in its set.

        Raises Stopped, what the suite's adder raises, FormatError for a stored chunk that is lost or is not what
        its site uploaded, and EnvironmentProblem while chunks cannot be read or stored.
        """
