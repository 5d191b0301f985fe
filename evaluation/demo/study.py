"""Runs one study on a ``DemoConsortium`` in real processes and watches it to its end."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cipherward.cli.operator_client import dial
from cipherward.errors import UnavailableError
from cipherward.evaluation.demo.consortium import DemoConsortium
from cipherward.evaluation.demo.processes import Processes
from cipherward.proto.v1.coordinator_pb2 import StudyState, StudyStatus

_START_SECONDS = 60.0


class RunningStudy:
    """Coordinator and agents; ``processes`` stops them."""

    def __init__(
        self, consortium: DemoConsortium, processes: Processes, sites: Sequence[str], module: str
    ) -> None:
        self._consortium, self._processes, self._sites = consortium, processes, sites
        self._module = module
        self.address = ""

    def cipherward(self, *arguments: str) -> str:
        """Run a ``cipherward`` command to its end; gives its output, raises UnavailableError with its
        error."""
        done = subprocess.run(  # noqa: S603 - our own command line
            [sys.executable, "-m", self._module, *arguments], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise UnavailableError(
                f"cipherward {' '.join(arguments[:2])} failed", why=done.stderr.strip()[-600:] or "no output"
            )
        return done.stdout

    def start(self, trainer_socket: Path | None = None) -> None:
        """Start all processes and the study; ``trainer_socket``: one trainer for all agents."""
        self.start_coordinator("127.0.0.1:0")
        for name in self._sites:
            self.start_site(name, trainer_socket)
        self.start_study()

    def start_study(self) -> None:
        """As the operator."""
        self.cipherward(
            "study", "start", str(self._consortium.manifest), "--weights", str(self._consortium.weights),
            "--dir", str(self._consortium.operator), "--coordinator", self.address,
        )  # fmt: skip

    def start_coordinator(self, listen: str) -> None:
        """Start it and wait until it serves; ``address`` is then where."""
        address_file = self._consortium.coordinator / "address"
        address_file.unlink(missing_ok=True)
        folder = str(self._consortium.coordinator)
        self._processes.start("coordinator", "coordinator", "run", "--dir", folder, "--listen", listen)
        self.address = self._processes.address_of(self._consortium.coordinator, _START_SECONDS)

    def start_site(self, name: str, trainer_socket: Path | None = None) -> None:
        """Start one agent; it ends by itself when the study has ended."""
        shared = ["--trainer-socket", str(trainer_socket)] if trainer_socket else []
        self._processes.start(
            f"site-{name}", "site", "run", "--dir", str(self._consortium.site_folder(name)),
            "--coordinator", self.address, "--once-finished", *shared,
        )  # fmt: skip

    def watch(
        self, show: Callable[[StudyStatus], None], seconds: float, *, every: float = 0.2
    ) -> StudyStatus:
        """Follow the study as its operator until it ends; ``show`` gets its state ``every`` so many seconds.

        Raises UnavailableError if it is aborted, a process fails, or the time is up.
        """
        deadline = time.monotonic() + seconds
        with dial(self._consortium.operator, self.address) as client:
            while True:
                self._processes.check()
                if time.monotonic() > deadline:
                    raise UnavailableError(f"the study did not finish within {seconds:.0f} s")
                try:
                    status = client.status("")
                except UnavailableError:  # it is being restarted; if it had failed, the check above says so
                    time.sleep(every)
                    continue
                show(status)
                self._check_agents(status)
                if status.state == StudyState.STUDY_STATE_FINISHED:
                    return status
                if status.state == StudyState.STUDY_STATE_ABORTED:
                    raise UnavailableError("the study was aborted", why=status.reason)
                time.sleep(every)

    def _check_agents(self, status: StudyStatus) -> None:
        """Agents end by themselves once a study is over for them: all of them before its end is a refusal."""
        running = status.state == StudyState.STUDY_STATE_RUNNING
        if running and self._processes.ended([f"site-{name}" for name in self._sites]):
            raise UnavailableError(
                "all agents have ended before the study",
                why=self._processes.last_line(f"site-{self._sites[0]}"),
            )

    def wait_for_sites(self, seconds: float) -> None:
        """Until every agent has ended by itself: it has then seen and evaluated the final model."""
        deadline = time.monotonic() + seconds
        while not self._processes.ended([f"site-{name}" for name in self._sites]):
            self._processes.check()
            if time.monotonic() > deadline:
                raise UnavailableError(f"the agents did not end within {seconds:.0f} s of the study")
            time.sleep(0.05)

    def site_status(self, name: str) -> dict[str, Any]:
        """What a site says of itself, from its own state."""
        text = self.cipherward("site", "status", "--dir", str(self._consortium.site_folder(name)), "--json")
        found: dict[str, Any] = json.loads(text)
        return found
