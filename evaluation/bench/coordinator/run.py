"""Which figures are measured, each on a coordinator and sites of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cipherward.errors import UsageError
from cipherward.evaluation.bench.coordinator.checking import checking
from cipherward.evaluation.bench.coordinator.clients import Clients
from cipherward.evaluation.bench.coordinator.ingest import Ingest
from cipherward.evaluation.bench.coordinator.rounds import QUORUM, SHARED_KEY, SharedKeyRounds, quorum_round
from cipherward.evaluation.bench.coordinator.world import Note, World
from cipherward.evaluation.bench.crypto import Report
from cipherward.evaluation.demo.processes import Processes


class Figure(StrEnum):
    """What can be measured by itself."""

    INGEST = "ingest"
    ROUND = "round"
    RESTART = "restart"
    CHECKING = "checking"


@dataclass(frozen=True, slots=True)
class _Case:
    """The size at which a figure is measured, unless the caller says otherwise."""

    sites: int
    parameters: int
    by_default: bool = True


CASES = {
    (Figure.INGEST, QUORUM): _Case(200, 1_000_000),
    (Figure.INGEST, SHARED_KEY): _Case(200, 1_000_000, by_default=False),
    (Figure.ROUND, QUORUM): _Case(100, 1_000),
    (Figure.ROUND, SHARED_KEY): _Case(1000, 1_000),
    (Figure.RESTART, SHARED_KEY): _Case(1000, 1_000),
    (Figure.CHECKING, QUORUM): _Case(10, 10_000_000),
}


@contextmanager
def _world(sites: int, processes: int, note: Note) -> Iterator[tuple[World, Clients]]:
    with (
        tempfile.TemporaryDirectory(prefix="cipherward-bench-") as name,
        Processes(Path(name) / "logs") as running,
    ):
        folder = Path(name)
        world = World(folder, running, sites, note)
        with Clients(folder, world.names, processes) as clients:
            note(f"starting the coordinator and connecting {sites} sites in {len(clients.parts)} processes")
            world.start_coordinator()
            clients.everywhere("connect", address=world.address)
            yield world, clients


def run(
    figures: Sequence[str],
    suites: Sequence[str] | None,
    sites: int | None,
    parameters: int | None,
    repeats: int,
    processes: int,
    report: Report,
    note: Note,
) -> None:
    """Measure ``figures`` in ``suites`` (None: as ``CASES`` says); ``sites`` and ``parameters`` replace each
    figure's own numbers.

    Raises VerificationError if a sum is wrong, UnavailableError if anything was lost or did not finish.
    """
    for what, given, known in (
        ("figure", figures, list(Figure)),
        ("suite", suites or (), [QUORUM, SHARED_KEY]),
    ):
        if odd := [one for one in given if one not in known]:
            raise UsageError(f"there is no {what} {odd[0]!r}", fix=f"Choose from {', '.join(known)}")
    for (figure, name), case in CASES.items():
        if figure not in figures or (name not in suites if suites else not case.by_default):
            continue
        count, size = sites or case.sites, parameters or case.parameters
        note(f"{figure}: {name}, {count} sites, {size} parameters")
        with _world(count, processes, note) as (world, clients):
            if figure is Figure.INGEST:
                Ingest(world, clients, name, size).run(repeats, report)
            elif figure is Figure.RESTART:
                SharedKeyRounds(world, clients, size).restart(repeats, report)
            elif figure is Figure.CHECKING:
                checking(world, clients, size, report)
            elif name == QUORUM:
                quorum_round(world, clients, size, report)
            else:
                SharedKeyRounds(world, clients, size).round(report)
