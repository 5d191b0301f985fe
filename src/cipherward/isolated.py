"""Native code in a process of its own: it may crash, hang or be fooled, and only that process is lost.

``IsolatedWorker`` (the parent's half) starts ``python -m MODULE`` and exchanges length-prefixed frames with
it over its stdin and stdout; ``serve`` (the child's half) is what MODULE calls. Nothing but these pipes, and memory
that the parent names, carries content: no argument, environment variable, file or inherited memory does.

Request: u32 length of the rest, u8 length of the operation's name, name, body.
Reply: u32 length of the rest, u8 status, body. All big-endian.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

from cipherward.errors import CipherwardError, FormatError, UnavailableError, WireError, from_wire

Content = bytes | bytearray | memoryview
Handler = Callable[[bytes], bytes]

_LENGTH = struct.Struct(">I")
_DONE, _REFUSED, _FAILED = 0, 1, 2
_START_TIMEOUT = 60.0
_MAX_FRAME = 2**28
_PIPE_BYTES = 2**20
_PR_SET_PDEATHSIG = 1
# What a Python child needs to find its code. The rest of the environment may hold secrets and stays here.
_ENVIRONMENT = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")
# The kernel kills a child when the *thread* that started it ends: so one thread, as old as the process,
# starts them all.
_SPAWNER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="isolated-spawner")


class _Broken(Exception):
    """The worker is of no more use; the text says why."""


class _Deadline:
    """A time limit in seconds from now."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._end = time.monotonic() + limit

    def wait(self, fd: int, event: int) -> None:
        """Until ``fd`` is ready; raises _Broken when the time is up."""
        poll = select.poll()
        poll.register(fd, event)
        if not poll.poll(max(0.0, self._end - time.monotonic()) * 1000):
            raise _Broken(f"it did not finish within {self.limit:g} s")


class IsolatedWorker:
    """One killable worker process, started on first use and again after it was lost.

    ``memory_bytes``: what it may allocate beyond what it has when its modules are loaded. ``timeout``:
    seconds for one request. ``opening``: requests sent to each new process first, e.g. the key it works
    with. ``reply_limit``: bytes of the largest believable reply. ``shared``: file descriptors of memory that it sees
    too, by the same numbers. Threads take turns.
    """

    def __init__(
        self,
        module: str,
        *,
        memory_bytes: int,
        timeout: float,
        opening: Sequence[tuple[str, Content]] = (),
        reply_limit: int = _MAX_FRAME,
        shared: Sequence[int] = (),
    ) -> None:
        self._module = module
        self._memory_bytes = memory_bytes
        self._timeout = timeout
        self._opening = tuple(opening)
        self._reply_limit = reply_limit
        self._shared = tuple(shared)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock, self._closed = threading.Lock(), False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Of the running process; None if there is none."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def request(self, operation: str, *parts: Content, doing: str, start: bool = True) -> bytes:
        """Send one request, its body in parts, and return the reply's body.

        ``doing`` completes "the worker process died while ..." With ``start`` False a lost process is not
        replaced, for a request that means nothing without the ones before it.
        Raises what the handler raised, if that is a CipherwardError; UnavailableError if the process died,
        took longer than the timeout, ran out of memory or broke the protocol. It is killed then.
        """
        with self._lock:
            if self._closed:
                raise UnavailableError(f"a worker process failed while {doing}", why="it was closed")
            try:
                if self.pid is None:
                    self._discard()
                    if not start:
                        raise _Broken("it was lost before")
                    self._start()
                return self._exchange(operation, parts)
            except _Broken as broken:
                status = self._discard(patience=0.2)
                raise UnavailableError(
                    f"a worker process failed while {doing}",
                    why=f"{broken}{status}",
                    fix="It is started again on the next request",
                ) from None
            except CipherwardError:
                raise
            except BaseException:
                # Interrupted half way: what the pipes hold now belongs to no request.
                self._discard()
                raise

    def close(self) -> None:
        """Kill the process, also in the middle of another thread's request. That fails, as all do from here on."""
        self._closed = True
        process = self._process
        if process is not None:
            process.kill()
        with self._lock:
            self._discard()

    def _start(self) -> None:
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        # One arena and one thread: memory that is freed goes back, and parallelism means processes.
        environment |= {"MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-P", "-m", self._module, str(os.getpid()), str(self._memory_bytes)]
        try:
            process = _SPAWNER.submit(_spawn, command, environment, self._shared).result()
        except OSError as error:
            raise _Broken(f"it could not be started: {error.strerror}") from error
        self._process = process
        for pipe in (process.stdin, process.stdout):
            if pipe is None:
                raise _Broken("it was started without pipes")
            os.set_blocking(pipe.fileno(), False)
            try:
                fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
            except PermissionError:
                continue  # the user's allowance of large pipes is used up; small ones only cost time
        self._receive(_Deadline(_START_TIMEOUT))
        try:
            for name, body in self._opening:
                self._exchange(name, (body,))
        except CipherwardError:
            self._discard()  # without its opening it must not serve the next request
            raise

    def _exchange(self, operation: str, parts: Sequence[Content]) -> bytes:
        deadline = _Deadline(self._timeout)
        name = operation.encode()
        total = 1 + len(name) + sum(memoryview(part).nbytes for part in parts)
        if total > _MAX_FRAME:
            raise FormatError(f"a request of {total} bytes is too large", why=f"the limit is {_MAX_FRAME}")
        self._send(_LENGTH.pack(total) + bytes([len(name)]) + name, deadline)
        for part in parts:
            self._send(part, deadline)
        return self._receive(deadline)

    def _send(self, content: Content, deadline: _Deadline) -> None:
        fd = self._fd(writing=True)
        rest = memoryview(content).cast("B")
        while rest:
            deadline.wait(fd, select.POLLOUT)
            try:
                rest = rest[os.write(fd, rest) :]
            except BlockingIOError:
                continue
            except BrokenPipeError as error:
                raise _Broken("it died") from error

    def _receive(self, deadline: _Deadline) -> bytes:
        size = _LENGTH.unpack(self._read(_LENGTH.size, deadline))[0]
        if not 1 <= size <= min(self._reply_limit, _MAX_FRAME) + 1:
            raise _Broken(f"it announced a reply of {size} bytes")
        reply = self._read(size, deadline)
        status, body = reply[0], bytes(memoryview(reply)[1:])
        if status == _DONE:
            return body
        if status == _REFUSED:
            raise _refusal(body)
        raise _Broken(f"it met {body[:200].decode(errors='replace')}")

    def _read(self, size: int, deadline: _Deadline) -> bytearray:
        fd = self._fd(writing=False)
        content = bytearray(size)
        rest = memoryview(content)
        while rest:
            deadline.wait(fd, select.POLLIN)
            try:
                count = os.readv(fd, [rest])
            except BlockingIOError:
                continue
            if count == 0:
                raise _Broken("it died")
            rest = rest[count:]
        return content

    def _fd(self, *, writing: bool) -> int:
        pipe = None if self._process is None else self._process.stdin if writing else self._process.stdout
        if pipe is None:
            raise _Broken("it has no pipes")
        return pipe.fileno()

    def _discard(self, patience: float = 0.0) -> str:
        """Kill and reap; returns how it ended if it ended by itself.

        A pipe closes an instant before its process can be reaped, hence ``patience``, in seconds.
        """
        process, self._process = self._process, None
        if process is None:
            return ""
        try:
            ended = process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            ended = None
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        if not ended:
            return ""
        return f" ({signal.Signals(-ended).name})" if ended < 0 else f" (exit status {ended})"


def _spawn(
    command: Sequence[str], environment: Mapping[str, str], shared: Sequence[int]
) -> subprocess.Popen[bytes]:
    # A process group of its own keeps Ctrl-C away even while it starts. stderr goes nowhere: what native
    # code prints when it dies may hold what it worked on.
    return subprocess.Popen(  # noqa: S603 - our own interpreter and module, no shell
        command,
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        close_fds=True,
        pass_fds=shared,
        env=dict(environment),
        process_group=0,
    )


def _refusal(body: bytes) -> CipherwardError:
    try:
        parts = json.loads(body)
        if not all(isinstance(text, str) for text in parts.values()):
            raise TypeError
        return from_wire(WireError(**parts))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _Broken("its error could not be read") from error


def serve(handlers: Mapping[str, Handler]) -> NoReturn:
    """The child's half: answer requests by ``handlers`` until stdin ends. Call it from ``__main__``.

    A CipherwardError that a handler raises reaches the parent as it is. Any other exception ends the
    process, and the parent learns its kind but not its text, which may hold values.
    """
    parent, memory_bytes = int(sys.argv[1]), int(sys.argv[2])
    _die_with(parent)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent decides when a worker ends
    requests, replies = _private_pipes()
    _limit(memory_bytes)
    _reply(replies, _DONE, b"")
    while True:
        frame = _read_all(requests, _LENGTH.unpack(_read_all(requests, _LENGTH.size))[0])
        name = frame[1 : 1 + frame[0]].decode()
        try:
            body = handlers[name](frame[1 + frame[0] :])
        except CipherwardError as error:
            wire = WireError(error.code, error.what, error.why, error.fix)
            _reply(replies, _REFUSED, json.dumps(asdict(wire)).encode())
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent must learn of it
            _reply(replies, _FAILED, type(error).__name__.encode())
            break
        else:
            _reply(replies, _DONE, body)
    # Without running destructors of native objects whose state nobody vouches for.
    os._exit(0)


def _die_with(parent: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def _private_pipes() -> tuple[int, int]:
    """Move the pipes out of reach of whatever prints to stdout or reads stdin."""
    requests, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    return requests, replies


def _limit(memory_bytes: int) -> None:
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + memory_bytes, mapped + memory_bytes))
    # Files in memory are not mapped, so the limit above does not see them.
    resource.setrlimit(resource.RLIMIT_FSIZE, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold the key


def _read_all(fd: int, size: int) -> bytes:
    """``size`` bytes; exits quietly when the parent has gone."""
    content = bytearray(size)
    rest = memoryview(content)
    while rest:
        count = os.readv(fd, [rest])
        if count == 0:
            os._exit(0)
        rest = rest[count:]
    return bytes(content)


def _reply(fd: int, status: int, body: bytes) -> None:
    rest = memoryview(_LENGTH.pack(1 + len(body)) + bytes([status]) + body)
    while rest:
        rest = rest[os.write(fd, rest) :]
