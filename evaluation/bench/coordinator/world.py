"""What the benchmark runs on: a consortium with many sites, the coordinator's process, an operator."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cipherward.cli.operator_client import dial
from cipherward.crypto.manifest import manifest_digest
from cipherward.crypto.pki.armour import Kind, armour_signed
from cipherward.crypto.records import StudyTrust
from cipherward.crypto.study_file import StudyFile
from cipherward.crypto.suites.base import KeyLifetime
from cipherward.crypto.suites.registry import suite
from cipherward.durable import write_file
from cipherward.errors import NotFoundError, UnavailableError
from cipherward.evaluation.bench.coordinator.clients import Clients
from cipherward.evaluation.bench.memory import peak_bytes, private_bytes, tree_bytes
from cipherward.evaluation.demo.consortium import COORDINATOR, DemoConsortium
from cipherward.evaluation.demo.processes import Processes
from cipherward.proto.v1.common_pb2 import Signed

Note = Callable[[str], None]
DEADLINE = 3600
START_SECONDS = 60.0
_POLL_SECONDS = 0.01


class World:
    """One folder. ``processes`` stops what was started."""

    def __init__(self, folder: Path, processes: Processes, sites: int, note: Note) -> None:
        note(f"making keys and certificates for {sites} sites")
        self.folder, self._processes, self.note = folder, processes, note
        self.consortium = DemoConsortium(folder)
        self.names = [f"site-{number:04}" for number in range(1, sites + 1)]
        for name in self.names:
            self.consortium.enrol(name)
        self.address, self.pid = "", 0
        self._signed: dict[str, Signed] = {}

    def study(self, name: str, suite_name: str, parameters: int, colluders: int | None = None) -> StudyTrust:
        """A signed study of one round for all sites; nothing may be lost, so that each of them must contribute."""
        chosen = suite(suite_name)
        params = next(iter(chosen.parameter_sets.values()))
        shared = chosen.key_lifetime is KeyLifetime.STUDY
        cohort: dict[str, Any] = {"minimum": len(self.names)}
        if colluders is not None:
            cohort["colluders"] = colluders
        study = StudyFile.model_validate(
            {
                "study": {"name": name, "rounds": 1, "coordinator": COORDINATOR},
                "task": {"name": "bench-load"},
                "training": {
                    "sampling_rate": 1.0, "steps": 1, "learning_rate": 0.1, "batch_divisor": 8.0,
                    "dp_disabled": True,
                },
                "metrics": {"loss_bound": 2.0, "scale": 8.0},
                "suite": {
                    "name": suite_name, "parameters": params.name, "bound": params.bound,
                    "key_maker": self.names[0] if shared else "",
                },
                "cohort": cohort,
                "deadlines": {
                    "join_window": DEADLINE, "upload": DEADLINE, "acknowledge": DEADLINE, "unseal": DEADLINE,
                    "verify": DEADLINE,
                },
            }
        )  # fmt: skip
        weights: NDArray[np.float32] = np.zeros(parameters, dtype=np.float32)
        signed, manifest = self.consortium.sign(study, weights, bytes(32))
        write_file(self.folder / f"{name}.pem", armour_signed(Kind.MANIFEST, signed))
        self._weights(parameters).write_bytes(weights.tobytes())
        self._signed[name] = signed
        return StudyTrust(manifest, manifest_digest(signed))

    def _weights(self, parameters: int) -> Path:
        return self.folder / f"weights-{parameters}.f32"

    def start_coordinator(self) -> float:
        """Start it; seconds until it answered a call."""
        started = time.monotonic()
        address_file = self.consortium.coordinator / "address"
        address_file.unlink(missing_ok=True)
        folder = str(self.consortium.coordinator)
        listen = self.address or "127.0.0.1:0"
        process = self._processes.start(
            "coordinator", "coordinator", "run", "--dir", folder, "--listen", listen
        )
        self.pid = process.pid
        while True:
            self._processes.check()
            with suppress(OSError, UnavailableError):
                self.address = address_file.read_text().strip()
                self._answers()
                return time.monotonic() - started
            if time.monotonic() > started + START_SECONDS:
                raise UnavailableError(f"the coordinator did not serve within {START_SECONDS:.0f} s")
            time.sleep(_POLL_SECONDS)

    def kill_coordinator(self) -> None:
        """SIGKILL."""
        self._processes.kill("coordinator")

    def peak_memory(self) -> int:
        """Of the coordinator's process since its start, and of its workers now, in bytes."""
        return peak_bytes(self.pid) + tree_bytes(self.pid) - private_bytes(self.pid)

    def start_study(self, trust: StudyTrust) -> None:
        """As the operator."""
        with dial(self.consortium.operator, self.address) as client:
            name = trust.manifest.study
            client.start(self._signed[name], self._weights(trust.manifest.parameter_count))

    def end_study(self, trust: StudyTrust) -> None:
        """As the operator: its uploads are thrown away."""
        with dial(self.consortium.operator, self.address) as client:
            client.abort(trust.manifest.study, "measured")

    def _answers(self) -> None:
        with dial(self.consortium.operator, self.address) as client, suppress(NotFoundError):
            client.status("")


def latencies(clients: Clients, note: Note) -> None:
    """Print what calls took since the last time, as their callers saw it."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for timings in clients.everywhere("timings"):
        for rpc, seconds in timings.items():
            found[rpc] += seconds
    for rpc, seconds in sorted(found.items()):
        note(f"  {rpc:<20}{len(seconds):>7} calls  {percentiles(seconds)}")


def percentiles(seconds: Iterable[float]) -> str:
    """Of calls, in one line."""
    ordered = sorted(seconds)
    at = {p: ordered[min(len(ordered) - 1, len(ordered) * p // 100)] for p in (50, 95, 99)}
    return "  ".join(f"p{p} {1000 * value:8.1f} ms" for p, value in at.items())


def median(values: Iterable[float]) -> float:
    """Of a few runs."""
    return statistics.median(values)
