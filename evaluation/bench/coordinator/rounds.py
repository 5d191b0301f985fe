"""Whole rounds of many sites, and restarts of a coordinator that is in the middle of one."""

from __future__ import annotations

import time
from typing import Any

from cipherward.crypto.records import StudyTrust
from cipherward.evaluation.bench.coordinator.clients import Clients
from cipherward.evaluation.bench.coordinator.ingest import Material, as_wire, check_sum, make_material
from cipherward.evaluation.bench.coordinator.updates import stored_chunks
from cipherward.evaluation.bench.coordinator.world import World, latencies, median
from cipherward.evaluation.bench.crypto import Report
from cipherward.evaluation.bench.records import Record

SHARED_KEY, QUORUM = "shared-key", "quorum"


def _label(trust: StudyTrust) -> str:
    return f"{trust.params.suite}:{trust.params.name}"


class SharedKeyRounds:
    """Rounds of all sites in the shared-key suite, each with a small update."""

    def __init__(self, world: World, clients: Clients, parameters: int) -> None:
        self._world, self._clients, self._parameters = world, clients, parameters
        folder = world.folder / "uploads"
        folder.mkdir()
        self._material: Material = make_material(folder, SHARED_KEY, parameters, len(world.names))
        self._parts = [
            [as_wire(self._material.of(first + index)) for index in range(len(names))]
            for first, names in clients.parts
        ]

    def _each(self, do: str, **arguments: Any) -> list[Any]:
        return self._clients.each(do, [{"updates": part, **arguments} for part in self._parts])

    def _begin(self, study: str) -> tuple[StudyTrust, str]:
        world = self._world
        trust = world.study(study, SHARED_KEY, self._parameters)
        digest = self._material.key.digest(trust.digest).hex() if self._material.key else ""
        world.start_study(trust)
        start = time.monotonic()
        self._clients.first("hand_out_keys", study=study, key_digest=digest)
        world.note(f"  keys for {len(world.names)} sites handed out in {time.monotonic() - start:.1f} s")
        return trust, digest

    def _finish(self, trust: StudyTrust) -> None:
        path = str(self._world.folder / f"{trust.manifest.study}-sum")
        counts = self._clients.everywhere("finish", path=path)
        check_sum(trust, self._material, stored_chunks(path, counts[0]))

    def round(self, report: Report) -> None:
        """Join, upload, commit, sum, fetch, report: until every site has seen the study end."""
        world, last = self._world, ""
        trust, digest = self._begin("round")
        start = time.monotonic()
        self._each("contribute", study="round", key_digest=digest)
        uploaded = time.monotonic() - start
        self._each("commit_all_but", last=last)
        committed = time.monotonic() - start
        self._finish(trust)
        seconds = time.monotonic() - start
        sites = len(world.names)
        world.note(
            f"  {sites} sites: all uploaded after {uploaded:.1f} s, committed {committed:.1f} s, finished "
            f"{seconds:.1f} s ({sites / seconds:.1f} updates/s); the sum is right, nothing is lost"
        )
        latencies(self._clients, world.note)
        self._report(report, "round", seconds, "s", trust)
        self._report(report, "peak_memory", world.peak_memory() / 1e6, "MB", trust)

    def restart(self, repeats: int, report: Report) -> None:
        """Kill and restart the coordinator while all sites but one have committed; then end the round."""
        world, clients, last = self._world, self._clients, self._world.names[-1]
        trust, digest = self._begin("restart")
        self._each("contribute", study="restart", key_digest=digest)
        self._each("commit_all_but", last=last)
        clients.everywhere("disconnect")
        seconds = []
        for _ in range(repeats):
            world.kill_coordinator()
            seconds.append(world.start_coordinator())
        clients.everywhere("connect", address=world.address)
        self._each("commit_one", last=last)
        self._finish(trust)
        world.note(
            f"  killed {repeats} times with {len(world.names) - 1} updates committed: serving after "
            f"{', '.join(f'{one:.2f}' for one in seconds)} s; then the round ended with the right sum"
        )
        self._report(report, "restart", median(seconds), "s", trust)

    def _report(self, report: Report, figure: str, value: float, unit: str, trust: StudyTrust) -> None:
        sites, clients = len(self._world.names), len(self._clients.parts)
        report(Record(figure, value, unit, _label(trust), self._parameters, sites, clients, "cpu", None))


def quorum_round(world: World, clients: Clients, parameters: int, report: Report) -> None:
    """All sites through a whole round of the quorum suite, each of them opening the sum for itself."""
    trust = world.study("quorum-round", QUORUM, parameters)
    world.start_study(trust)
    start = time.monotonic()
    late = clients.everywhere("quorum_round", study="quorum-round", sites=len(world.names))
    seconds, sites = time.monotonic() - start, len(world.names)
    acknowledgements, answers = (sum(counts) for counts in zip(*late, strict=True))
    world.note(
        f"  {sites} sites: finished after {seconds:.1f} s ({sites / seconds:.1f} updates/s); every site opened the "
        f"sum, and it is right; {acknowledgements} acknowledgements and {answers} answers came later than the "
        "coordinator waited"
    )
    latencies(clients, world.note)
    for figure, value, unit in (("round", seconds, "s"), ("peak_memory", world.peak_memory() / 1e6, "MB")):
        record = Record(
            figure, value, unit, _label(trust), parameters, sites, len(clients.parts), "cpu", None
        )
        report(record)
