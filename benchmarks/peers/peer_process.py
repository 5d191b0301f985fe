"""A measuring script as a child process; ``repetitions.py`` is its other end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from peer_systems import System

from cipherward.durable import explained
from cipherward.errors import EnvironmentProblem

LIMIT = 1800.0
"""Seconds that a repetition may take."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one repetition found, by step: seconds, bytes on the wire, bytes of memory above the start."""

    seconds: dict[str, float]
    bytes: dict[str, int]
    peaks: dict[str, int]


class Measuring:
    """Starts the script of ``system`` with that ``python``; what it says besides answers goes to ``log``."""

    def __init__(self, system: System, python: Path, parameters: int, log: Path) -> None:
        self.system, self._log = system, log
        with explained("write", log), log.open("wb") as errors:
            self._process = subprocess.Popen(  # noqa: S603 - our own script
                [str(python), str(system.script), "--parameters", str(parameters), "--sites", str(system.sites),
                 *system.arguments],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
        self.threads = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def start(self) -> None:
        """Wait until it is ready; sets ``threads``."""
        self.threads = int(self._line()["threads"])

    def repeat(self, *, peaks: bool) -> Answer:
        """One repetition. EnvironmentProblem with the script's last words if it died."""
        question = self._process.stdin
        try:
            if question is not None:
                question.write(json.dumps({"peaks": peaks}) + "\n")
                question.flush()
        except BrokenPipeError as error:
            raise self._failure() from error
        return Answer(**self._line())

    def _line(self) -> dict[str, Any]:
        alarm = threading.Timer(LIMIT, self._process.kill)
        alarm.start()
        try:
            line = self._process.stdout.readline() if self._process.stdout else ""
        finally:
            alarm.cancel()
        if not line:
            raise self._failure()
        found: dict[str, Any] = json.loads(line)
        return found

    def _failure(self) -> EnvironmentProblem:
        status = self._process.wait()
        words = self._log.read_text(errors="replace").split("\n")
        why = next(
            (line.strip() for line in reversed(words) if line.strip()), f"it ended with status {status}"
        )
        if status == -signal.SIGKILL:
            why = f"it was killed: the machine is out of memory, or it took longer than {LIMIT:.0f} s"
        return EnvironmentProblem(f"measuring {self.system.label} failed", why=why, fix=f"See {self._log}")
