"""A row's own process: started afresh, with its share of the machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from cipherward.errors import CipherwardError
from cipherward.evaluation.threats import registry
from cipherward.evaluation.threats.outcome import Outcome
from cipherward.evaluation.threats.row import Context, Result, Row

_SPAWN = multiprocessing.get_context("spawn")
_LEAST_SECONDS = 300.0
_HANG = 10.0


def _end_with(parent: int) -> None:
    """End this process, and so what it started, soon after ``parent`` is gone without having ended it."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20.0)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _work(identity: str, fast: bool, folder: Path, log: Path, sender: Connection) -> None:
    """In the new process: run the row, send notes and at the end its result or what it raised."""
    _end_with(os.getppid())
    with log.open("ab", buffering=0) as out:
        os.dup2(out.fileno(), sys.stdout.fileno())
        os.dup2(out.fileno(), sys.stderr.fileno())
    row = registry.load(identity)
    context = Context(folder, fast, row.seeds[0], lambda text: sender.send(text))
    try:
        sender.send(row.run(context))
    except CipherwardError as error:
        traceback.print_exc()
        sender.send(error.args)
    except Exception as error:  # noqa: BLE001 - whatever a row raises is the row's error
        traceback.print_exc()
        sender.send((f"{type(error).__name__}: {error}",))


@dataclass
class Running:
    """A row in its process. ``poll`` gives its outcome once there is one."""

    row: Row
    fast: bool
    log: Path
    process: BaseProcess
    receiver: Connection
    started: float
    said: str = ""

    @classmethod
    def start(cls, row: Row, fast: bool, folder: Path, log: Path, threads: int) -> Running:
        """Start it with ``threads`` for each library that has any."""
        receiver, sender = _SPAWN.Pipe(duplex=False)
        folder.mkdir(parents=True, mode=0o700)
        process = _SPAWN.Process(target=_work, args=(row.id, fast, folder, log, sender), name=row.id)
        before = dict(os.environ)
        # What the child inherits at its start; libraries read it when they are loaded.
        os.environ |= {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
        try:
            process.start()
        finally:
            os.environ.clear()
            os.environ.update(before)
        sender.close()
        return cls(row, fast, log, process, receiver, time.monotonic())

    @property
    def seconds(self) -> float:
        """Since its start."""
        return time.monotonic() - self.started

    def poll(self) -> Outcome | None:
        """What became of it, or None while it runs; ``said`` is its newest note."""
        limit = max(_LEAST_SECONDS, _HANG * self.row.seconds(self.fast))
        while self.receiver.poll():
            try:
                told = self.receiver.recv()
            except EOFError:  # it died, and said nothing of it
                self._end()
                return self._failed(f"its process ended with {self.process.exitcode}")
            if isinstance(told, str):
                self.said = told
                continue
            self._end()
            if isinstance(told, Result):
                return Outcome(self.row, self.fast, self.seconds, told)
            return self._failed("; ".join(str(part) for part in told if part))
        if self.seconds > limit:
            self.stop()
            return self._failed(f"it did not end within {limit:.0f} s")
        return None

    def _failed(self, why: str) -> Outcome:
        return Outcome(self.row, self.fast, self.seconds, None, f"{why} (see {self.log.name})")

    def _end(self) -> None:
        self.process.join(20)
        self.stop()

    def stop(self) -> None:
        """End it; what it started ends with it."""
        if self.process.is_alive():
            self.process.terminate()
            self.process.join(20)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
