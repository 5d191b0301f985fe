"""The four hospitals' study in real processes over mutual TLS: a coordinator, an agent each, one trainer."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from cipherward.crypto.pki.armour import Kind, armour_signed
from cipherward.durable import write_file
from cipherward.evaluation.demo.processes import Processes
from cipherward.evaluation.demo.study import RunningStudy
from cipherward.evaluation.threats.kit.hospital import NAMES, PARAMETERS, Hospitals
from cipherward.proto.v1.coordinator_pb2 import StudyStatus
from cipherward.site_agent.training.client import Trainer

APP = "cipherward.cli.app"


class RealStudy:
    """``world`` and its processes; nothing runs before ``start``. Leaving the context ends everything."""

    def __init__(self, folder: Path, rounds: int) -> None:
        self.folder, self.world = folder, Hospitals(folder / "consortium", epsilon_ceiling=100.0)
        consortium = self.world.consortium
        weights = np.zeros(PARAMETERS, dtype="<f4")
        signed, self.trust = self.world.manifest(weights, rounds)
        write_file(consortium.weights, weights.tobytes())
        write_file(consortium.manifest, armour_signed(Kind.MANIFEST, signed))
        self._trainer = Trainer(folder / "trainer" / "socket", log=folder / "trainer.log")
        self.processes = Processes(folder / "logs")
        self.running = RunningStudy(consortium, self.processes, list(NAMES), APP)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.callback(self._trainer.close)
        self._stack.enter_context(self.processes)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def start(self, sites: tuple[str, ...] = NAMES) -> None:
        """Coordinator, these agents, and the study."""
        self._trainer.start()
        self.running.start_coordinator("127.0.0.1:0")
        for name in sites:
            self.start_site(name)
        self.running.start_study()

    def start_site(self, name: str) -> None:
        """One agent, as shipped."""
        self.running.start_site(name, self.folder / "trainer" / "socket")

    def to_the_end(self, seconds: float = 300.0) -> StudyStatus:
        """Wait until the study and the agents have ended; raises UnavailableError if they do not."""
        status = self.running.watch(lambda _: None, seconds)
        self.running.wait_for_sites(seconds)
        return status

    def log(self, name: str) -> str:
        """Everything that a process printed."""
        return (self.folder / "logs" / f"{name}.log").read_text()
