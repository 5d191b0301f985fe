"""The agent's side of the trainer. Loads no torch. Calls block: a daemon wraps them in ``cancellable``."""

from __future__ import annotations

import asyncio
import os
import shlex
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from cipherward.durable import explained
from cipherward.errors import EnvironmentProblem, FormatError, UnavailableError, WireError, from_wire
from cipherward.site_agent.ledger.accountant_service import accounting_socket
from cipherward.site_agent.tasks.base import Split
from cipherward.site_agent.training.constants import TrainingConstants
from cipherward.site_agent.training.metrics import METRICS, Evaluation
from cipherward.site_agent.training.protocol import Array, receive, send

_MODULE = "cipherward.site_agent.training.server"
_START_SECONDS = 120.0
_SHORT_JOB = 600.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TaskRef:
    """An installed task and the digest that its code must have (``registry.task_digest``)."""

    name: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class TrainOutcome:
    """``update``: (P,), float32, finite, see ``dpsgd.TrainingResult``. ``metrics``: (3,), float64, see
    ``metrics.federated``. The rest stays at the hospital: seconds of training, how many patient gradients
    were not finite and counted as zero, and ``patients``, the id of each patient that this job loaded, once,
    sorted."""

    update: NDArray[np.float32] = field(repr=False)
    metrics: NDArray[np.float64] = field(repr=False)
    seconds: float
    dropped: int
    patients: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Description:
    """``patients``: each training patient's id once, sorted. ``parameters``: P, of the task's model."""

    patients: tuple[str, ...] = field(repr=False)
    records: int
    parameters: int


class Cancellation:
    """Ends a call from another thread: the call raises UnavailableError and its job is killed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = False
        self._connection: socket.socket | None = None

    def cancel(self) -> None:
        """May come before, during or after the call, and more than once."""
        with self._lock:
            self._cancelled = True
            if self._connection is not None:
                with suppress(OSError):  # it has ended already
                    self._connection.shutdown(socket.SHUT_RDWR)

    def _attach(self, connection: socket.socket | None) -> None:
        with self._lock:
            if self._cancelled and connection is not None:
                raise UnavailableError("the training job was cancelled")
            self._connection = connection


async def cancellable(call: Callable[[Cancellation], T]) -> T:
    """Run a blocking call in a thread; cancelling the awaiting task kills the job.

    Example: ``await cancellable(lambda c: trainer.train(task, source, constants, weights, cancellation=c))``.
    """
    cancellation = Cancellation()
    try:
        return await asyncio.to_thread(call, cancellation)
    except asyncio.CancelledError:
        cancellation.cancel()
        raise


class Trainer:
    """A trainer server and its jobs. Threads may share it; each job has a connection and a process of its
    own.

    ``socket_path``: in a folder of mode 0700, made if missing. ``spawn``: start the server, and start it
    again if it dies; otherwise use one that someone else runs at that path. ``jobs``: how many jobs may run
    at a time (by default one a CPU). ``log``: the server's standard error, by default this process's own.
    """

    def __init__(
        self, socket_path: Path, *, spawn: bool = True, jobs: int | None = None, log: Path | None = None
    ) -> None:
        self._path = socket_path
        self._spawn = spawn
        self._jobs = jobs
        self._log = log
        self._lock = threading.Lock()
        self._server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Have a server that answers. Call it before any key is loaded: what comes later is then never
        shared.

        Raises EnvironmentProblem if the server ends at once, UnavailableError if none answers in time.
        """
        with self._lock:
            self._connect_or_start().close()

    def close(self) -> None:
        """End the server, if this object started one, and every job that it runs."""
        with self._lock:
            server, self._server = self._server, None
        if server is not None:
            _stop(server)

    def answers(self) -> bool:
        """Whether the server runs. Starts none, and asks for no job."""
        server = self._server
        if server is not None:
            return server.poll() is None
        try:
            self._connect().close()
        except OSError:
            return False
        return True

    @property
    def pid(self) -> int | None:
        """The process id of the server that this object started."""
        return None if self._server is None else self._server.pid

    def train(
        self,
        task: TaskRef,
        source: str,
        constants: TrainingConstants,
        weights: NDArray[np.float32],
        *,
        timeout: float,
        cancellation: Cancellation | None = None,
    ) -> TrainOutcome:
        """One round on the source's training patients, from the global ``weights``, (P,), float32.

        ``timeout`` in seconds, also of the wait for a free place. Raises UnavailableError if the trainer
        dies, the time is up (the job is killed) or the call is cancelled; the errors of ``jobs.run``
        otherwise.
        """
        header = {"job": "train", "source": source, "constants": constants.to_json()}
        result, arrays = self._call(task, header, {"weights": weights}, timeout, cancellation)
        update, metrics = _array(arrays, "update", len(weights)), _array(arrays, "metrics", METRICS)
        return TrainOutcome(
            update.astype(np.float32),
            metrics.astype(np.float64),
            result["seconds"],
            result["dropped"],
            tuple(result["patients"]),
        )

    def evaluate(
        self,
        task: TaskRef,
        source: str,
        split: Split,
        weights: NDArray[np.float32],
        *,
        timeout: float = _SHORT_JOB,
        cancellation: Cancellation | None = None,
    ) -> Evaluation:
        """Exact figures of ``weights`` on one split, for the hospital's own eyes. Raises as ``train``."""
        header = {"job": "evaluate", "source": source, "split": split.value}
        result, _ = self._call(task, header, {"weights": weights}, timeout, cancellation)
        return Evaluation(**result)

    def describe(self, task: TaskRef, source: str, *, timeout: float = _SHORT_JOB) -> Description:
        """The source's training patients and the model's size. Raises as ``train``."""
        result, _ = self._call(task, {"job": "describe", "source": source}, {}, timeout, None)
        return Description(tuple(result["patients"]), result["records"], result["parameters"])

    def initial_weights(
        self, task: TaskRef, seed: int, *, timeout: float = _SHORT_JOB
    ) -> NDArray[np.float32]:
        """The task's model built under ``seed``, (P,), float32. Raises as ``train``."""
        _, arrays = self._call(task, {"job": "initial_weights", "seed": seed}, {}, timeout, None)
        return _array(arrays, "weights", None).astype(np.float32)

    def connect_accountant(self) -> socket.socket:
        """To the accountant that the server keeps beside its jobs, for ``ledger.accountant``.

        Raises UnavailableError if a server that this object started is not the one that listens there: a job
        runs as the same user and could put a socket of its own in that place. Otherwise as ``start``.
        """
        with self._lock:
            connection = self._connect_or_start(accounting_socket(self._path))
            server = self.pid
        if server not in (None, _listening_process(connection)):
            connection.close()
            raise UnavailableError(
                "the privacy accountant is not the trainer's own",
                why=f"another process listens at {accounting_socket(self._path)}",
                fix="Stop the agent, find out which process it is, and start the agent again",
            )
        return connection

    def _call(
        self,
        task: TaskRef,
        header: dict[str, Any],
        arrays: dict[str, Array],
        timeout: float,
        cancellation: Cancellation | None,
    ) -> tuple[dict[str, Any], dict[str, Array]]:
        cancellation = cancellation or Cancellation()
        deadline = time.monotonic() + timeout
        with self._lock:
            connection = self._connect_or_start()
        with connection:
            cancellation._attach(connection)
            try:
                connection.settimeout(timeout)
                send(connection, {**header, "task": task.name, "digest": task.digest.hex()}, arrays)
                reply, out = receive(connection, deadline)
            except TimeoutError as error:
                raise UnavailableError(
                    f"the {header['job']} job was stopped", why=f"it took longer than {timeout:g} s"
                ) from error
            except (EOFError, OSError) as error:
                raise UnavailableError(
                    f"the {header['job']} job ended without an answer",
                    why="it was cancelled, or its process died",
                    fix="The trainer's log says why; a lack of memory is the usual cause",
                ) from error
            finally:
                cancellation._attach(None)
        if "error" in reply:
            raise from_wire(WireError(**reply["error"]))
        result: dict[str, Any] = reply["result"]
        return result, out

    def _connect_or_start(self, path: Path | None = None) -> socket.socket:
        """To the trainer, or to the other socket of its server."""
        try:
            return self._connect(path)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            if not self._spawn:
                raise UnavailableError(
                    f"no trainer answers at {path or self._path}",
                    fix=f"Start it: python -m {_MODULE} --socket {shlex.quote(str(self._path))}",
                ) from error
        except OSError:
            with explained("connect to", path or self._path):
                raise
        connection = self._launch()
        if path is None:
            return connection
        connection.close()
        return self._connect(path)

    def _connect(self, path: Path | None = None) -> socket.socket:
        path = path or self._path
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(f"/proc/self/fd/{folder}/{path.name}")  # however long the folder's path
        except BaseException:
            connection.close()
            raise
        finally:
            os.close(folder)
        return connection

    def _launch(self) -> socket.socket:
        with explained("make the folder", self._path.parent):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._server is not None:
            _stop(self._server)
        # -P: the working folder is no place to import code from.
        command = [sys.executable, "-P", "-m", _MODULE, "--socket", str(self._path), "--lifeline"]
        if self._jobs is not None:
            command += ["--jobs", str(self._jobs)]
        log: BinaryIO | None = None
        if self._log is not None:
            with explained("write", self._log):
                log = self._log.open("ab")
        try:
            server = self._server = subprocess.Popen(  # noqa: S603 - our own module, our own interpreter
                command, stdin=subprocess.PIPE, stderr=log
            )
        finally:
            if log is not None:
                log.close()
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            try:
                return self._connect()
            except (FileNotFoundError, ConnectionRefusedError):
                status = server.poll()
            if status is not None:
                raise EnvironmentProblem(
                    f"the trainer ended with status {status} instead of starting",
                    fix=f"Look at {self._log or 'the lines above'}; is cipherward[site] installed?",
                )
            time.sleep(0.02)
        raise UnavailableError(f"the trainer did not start within {_START_SECONDS:g} s")


def _listening_process(connection: socket.socket) -> int:
    """The id of the process that called ``listen`` for the other end: unix(7), SO_PEERCRED."""
    size = struct.calcsize("3i")
    pid: int = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[0]
    return pid


def _stop(server: subprocess.Popen[bytes]) -> None:
    """Let go of the lifeline and wait; the server kills its jobs."""
    if server.stdin is not None:
        server.stdin.close()
    try:
        server.wait(timeout=10)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _array(arrays: dict[str, Array], name: str, count: int | None) -> Array:
    array = arrays.get(name)
    if array is None or (count is not None and len(array) != count) or not np.isfinite(array).all():
        raise FormatError(f"the trainer's answer has no usable {name}")
    return array
