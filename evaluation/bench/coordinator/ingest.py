"""Ingest: all sites upload at once. Beside it, in the same run and turn by turn, the same messages to a gRPC server
that drops them, and the same bytes hashed, written and synced without a server."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from cipherward.crypto.records import StudyTrust
from cipherward.crypto.suites.base import KeyLifetime, StudyKey
from cipherward.crypto.suites.payload import Layout
from cipherward.crypto.suites.registry import suite
from cipherward.crypto.suites.site_side import study_key_side
from cipherward.errors import VerificationError
from cipherward.evaluation.bench.coordinator.bare import DISK_THREADS, bare_disk, bare_server
from cipherward.evaluation.bench.coordinator.clients import Clients
from cipherward.evaluation.bench.coordinator.updates import (
    Update,
    exact_sum,
    quorum_updates,
    shared_key_updates,
    stored_chunks,
)
from cipherward.evaluation.bench.coordinator.world import World, latencies, median
from cipherward.evaluation.bench.crypto import Report
from cipherward.evaluation.bench.records import Record
from cipherward.site_agent.training.metrics import METRICS

DIFFERENT = 4
"""Quorum: so many different updates, which the sites share."""


@dataclass(frozen=True, slots=True)
class Material:
    """What is uploaded, and what opens the sum of it."""

    updates: list[Update]
    shares: int
    key: StudyKey | None

    def of(self, number: int) -> Update:
        """Site ``number``'s."""
        return self.updates[number % len(self.updates)]

    def wire(self) -> list[dict[str, Any]]:
        """For the client processes."""
        return [as_wire(update) for update in self.updates]


def as_wire(update: Update) -> dict[str, Any]:
    """As JSON takes it."""
    return {
        name: value.hex() if isinstance(value, bytes) else value for name, value in asdict(update).items()
    }


def make_material(folder: Path, suite_name: str, parameters: int, sites: int) -> Material:
    """Updates for so many sites, in files."""
    chosen, length = suite(suite_name), Layout(parameters, METRICS).length
    params = chosen.parameters(next(iter(chosen.parameter_sets)), None, sites)
    if chosen.key_lifetime is KeyLifetime.STUDY:
        key, updates = shared_key_updates(folder, params, length, sites)
        return Material(updates, 0, key)
    return Material(quorum_updates(folder, params, length, sites, min(DIFFERENT, sites)), sites, None)


def check_sum(trust: StudyTrust, material: Material, chunks: list[bytes]) -> None:
    """VerificationError unless the chunks are the sum of all sites' updates: opened, where the benchmark has the
    key, else added up again from the uploads in plain integers."""
    params, sites = trust.params, len(trust.sites)
    length = Layout(trust.manifest.parameter_count, METRICS).length
    if material.key is not None:
        with study_key_side(params.suite).cipher(material.key, b"") as cipher:
            opened = cipher.open_sum(chunks, length, sites)
        error = float(np.abs(opened - exact_sum(range(sites), length)).max())
        if error > params.error_bound(sites):
            raise VerificationError(f"the opened sum is off by {error:.3g}")
        return
    times = [len(range(number, sites, len(material.updates))) for number in range(len(material.updates))]
    uploads = zip(*(update.chunks() for update in material.updates), strict=True)
    modulus = params.modulus  # type: ignore[attr-defined]
    for index, (chunk, parts) in enumerate(zip(chunks, uploads, strict=True)):
        total = sum(
            np.frombuffer(part, dtype="<u4").astype(np.uint64) * np.uint64(count)
            for part, count in zip(parts, times, strict=True)
        )
        if not np.array_equal(np.frombuffer(chunk, dtype="<u4"), total % np.uint64(modulus)):
            raise VerificationError(f"chunk {index} of the sum is not the sum of the updates")


class Ingest:
    """Repeats of the three, interleaved."""

    def __init__(self, world: World, clients: Clients, suite_name: str, parameters: int) -> None:
        self._world, self._clients = world, clients
        self._suite, self._parameters = suite_name, parameters
        folder = world.folder / "uploads"
        folder.mkdir()
        self._material = make_material(folder, suite_name, parameters, len(world.names))
        sites = range(len(world.names))
        self._megabytes = sum(self._material.of(number).data_bytes for number in sites) / 1e6

    def run(self, repeats: int, report: Report) -> None:
        """Report ``ingest`` and ``peak_memory``; raises VerificationError if a sum is wrong."""
        world, sites = self._world, len(self._world.names)
        ours, streams, disks = [], [], []
        world.note(f"{sites} uploads at once, {self._megabytes:.0f} MB, {repeats} times, turn by turn:")
        for number in range(1, repeats + 1):
            streams.append(self._megabytes / self._bare_stream())
            disks.append(self._megabytes / self._bare_disk())
            seconds = self._ours(f"ingest-{number}")
            ours.append(self._megabytes / seconds)
            world.note(
                f"  {number}: ingest {ours[-1]:.0f} MB/s ({sites / seconds:.1f} updates/s), bare stream "
                f"{streams[-1]:.0f} MB/s, bare disk {disks[-1]:.0f} MB/s; the sum is right"
            )
        latencies(self._clients, world.note)
        slower = min(median(streams), median(disks))
        world.note(
            f"  median: ingest {median(ours):.0f}, bare stream {median(streams):.0f}, bare disk "
            f"{median(disks):.0f} MB/s; ingest / slower of the two = {median(ours) / slower:.2f}"
        )
        label = f"{self._suite}:{next(iter(suite(self._suite).parameter_sets))}"
        params, clients = self._parameters, len(self._clients.parts)
        report(Record("ingest", median(ours), "MB/s", label, params, sites, clients, "cpu", slower))
        peak = world.peak_memory() / 1e6
        report(Record("peak_memory", peak, "MB", label, params, sites, clients, "cpu", None))

    def _bare_stream(self) -> float:
        with bare_server(self._world.consortium.coordinator) as address:
            self._clients.everywhere("bare_connect", address=address)
            start = time.monotonic()
            ends = self._clients.everywhere("bare_upload", updates=self._material.wire())
            self._clients.everywhere("bare_close")
            seconds: float = max(ends) - start
            return seconds

    def _bare_disk(self) -> float:
        sizes = []
        for number in range(len(self._world.names)):
            update = self._material.of(number)
            chunks = [len(raw) for raw in islice(update.messages(), update.chunk_count)]
            shares = [len(raw) for raw in islice(update.messages(), update.chunk_count, None)]
            sizes += [one for one in (chunks, shares) if one]
        folder = self._world.folder / "disk"
        return min(bare_disk(folder, sizes, threads) for threads in DISK_THREADS)

    def _ours(self, study: str) -> float:
        world, clients, updates = self._world, self._clients, self._material.wire()
        trust = world.study(study, self._suite, self._parameters)
        world.start_study(trust)
        digest = ""
        if self._material.key is not None:
            digest = self._material.key.digest(trust.digest).hex()
            clients.first("hand_out_keys", study=study, key_digest=digest)
        clients.everywhere("join", study=study, key_digest=digest)
        start = time.monotonic()
        ends = clients.everywhere("upload", updates=updates, shares=self._material.shares)
        seconds: float = max(ends) - start
        clients.everywhere("commit", updates=updates)
        if self._material.key is None:
            clients.everywhere("acknowledge", study=study)
        path = str(world.folder / f"{study}-sum")
        check_sum(trust, self._material, stored_chunks(path, clients.first("fetch_sum", path=path)))
        world.end_study(trust)
        return seconds
