"""Starts the demo's processes and makes sure that none outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from cipherward.errors import UnavailableError

_CHILD = "cipherward.evaluation.demo.child"


class Processes:
    """A group of named processes with a log file each; leaving the context stops them all."""

    def __init__(self, logs: Path, module: str = "cipherward.cli.app") -> None:
        self._logs, self._module = logs, module
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Run ``cipherward ARGUMENTS`` with its output in ``logs/NAME.log``."""
        with (self._logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 - our own command line
                [sys.executable, "-m", _CHILD, str(os.getpid()), self._module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C reaches the demo alone, which then stops everything in order.
                start_new_session=True,
                env={**os.environ, "MALLOC_ARENA_MAX": "1"},
            )
        self._running[name] = process
        return process

    def check(self) -> None:
        """UnavailableError with the end of its log if a process ended with an error."""
        for name, process in self._running.items():
            if process.poll() not in (None, 0):
                raise UnavailableError(
                    f"{name} stopped with exit status {process.returncode}",
                    why=self.last_line(name) or "its log is empty",
                    fix=f"See {self._logs / name}.log",
                )

    def ended(self, names: list[str]) -> bool:
        """Whether all of these have ended."""
        return all(self._running[name].poll() is not None for name in names)

    def last_line(self, name: str) -> str:
        """The last line that a process printed."""
        lines = (self._logs / f"{name}.log").read_text(errors="replace").strip().splitlines()
        return lines[-1][-400:] if lines else ""

    def wait_until(self, ready: Callable[[], bool], what: str, seconds: float) -> None:
        """Poll until ``ready``; UnavailableError after ``seconds`` or if a process fails first."""
        deadline = time.monotonic() + seconds
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"{what} did not happen within {seconds:.0f} s", fix=f"See {self._logs}"
                )
            time.sleep(0.05)

    def address_of(self, coordinator: Path, seconds: float) -> str:
        """Where the coordinator of that folder serves, once it does; raises as ``wait_until``."""
        file = coordinator / "address"
        self.wait_until(file.exists, "the coordinator's start", seconds)
        return file.read_text().strip()

    def kill(self, name: str) -> None:
        """SIGKILL, as a power cut would; it is not missed by ``check`` afterwards."""
        process = self._running.pop(name)
        process.kill()
        process.wait()

    def stop(self, seconds: float = 15.0) -> None:
        """SIGTERM to all, SIGKILL to whoever is still there after ``seconds``."""
        for process in self._running.values():
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + seconds
        for process in self._running.values():
            try:
                process.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def __enter__(self) -> Self:
        def stop(_signal: int, _frame: FrameType | None) -> None:
            raise KeyboardInterrupt

        signal.signal(signal.SIGTERM, stop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A second Ctrl-C must not leave processes behind.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self.stop()
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
