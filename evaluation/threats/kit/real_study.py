"""The four hospitals' study in real processes over mutual TLS: a coordinator, an agent each, one trainer."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from cipherward.cli.operator_client import dial
from cipherward.crypto.pki.armour import Kind, armour_signed
from cipherward.durable import write_file
from cipherward.evaluation.demo.processes import Processes
from cipherward.evaluation.demo.study import RunningStudy
from cipherward.evaluation.threats.kit.hospital import NAMES, PARAMETERS, Hospitals
from cipherward.proto.v1.coordinator_pb2 import StudyStatus
from cipherward.site_agent.training.client import Trainer

APP, ODD = "cipherward.cli.app", "cipherward.evaluation.threats.kit.odd_site"


class RealStudy:
    """``world`` and its processes; nothing runs before ``start``. Leaving the context ends everything.

    ``odd``: hospitals whose agents do one thing otherwise (``odd_site``)."""

    def __init__(self, folder: Path, rounds: int, odd: Mapping[str, str] | None = None) -> None:
        self.folder, self.odd = folder, odd or {}
        self.world = Hospitals(folder / "consortium", epsilon_ceiling=100.0)
        consortium = self.world.consortium
        weights = np.zeros(PARAMETERS, dtype="<f4")
        signed, self.trust = self.world.manifest(weights, rounds)
        write_file(consortium.weights, weights.tobytes())
        write_file(consortium.manifest, armour_signed(Kind.MANIFEST, signed))
        self._socket = folder / "trainer" / "socket"
        self._trainer = Trainer(self._socket, log=folder / "trainer.log")
        self.processes = Processes(folder / "logs")
        self._odd_processes = Processes(folder / "logs", ODD)
        self.shipped = [name for name in NAMES if name not in self.odd]
        self.running = RunningStudy(consortium, self.processes, self.shipped, APP)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.callback(self._trainer.close)
        self._stack.enter_context(self.processes)
        self._stack.enter_context(self._odd_processes)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def start(self) -> None:
        """Coordinator, agents, and the study."""
        self._trainer.start()
        self.running.start_coordinator("127.0.0.1:0")
        for name in self.shipped:
            self.start_site(name)
        for name, oddity in self.odd.items():
            self.start_odd(name, oddity)
        self.running.start_study()

    def start_site(self, name: str) -> None:
        """One agent, as shipped."""
        self.running.start_site(name, self._socket)

    def start_odd(self, name: str, oddity: str) -> None:
        """One agent that does one thing otherwise."""
        self._odd_processes.start(
            f"site-{name}", oddity, "site", "run", "--dir", str(self.world.consortium.site_folder(name)),
            "--coordinator", self.running.address, "--once-finished", "--trainer-socket", str(self._socket),
        )  # fmt: skip

    def kill(self, name: str) -> None:
        """SIGKILL to an agent, odd or not."""
        for processes in (self.processes, self._odd_processes):
            with suppress(KeyError):
                processes.kill(f"site-{name}")

    def status(self) -> StudyStatus:
        """As the operator sees it now."""
        with dial(self.world.consortium.operator, self.running.address) as client:
            return client.status("")

    def to_the_end(self, seconds: float = 300.0) -> StudyStatus:
        """Wait until the study and the agents have ended; raises UnavailableError if they do not."""
        status = self.running.watch(lambda _: None, seconds)
        self.running.wait_for_sites(seconds)
        return status

    def log(self, name: str) -> str:
        """Everything that a process printed."""
        return (self.folder / "logs" / f"{name}.log").read_text()
