"""The preloaded trainer: loads torch and Opacus once, then forks one child for each job.

    python -m cipherward.site_agent.training.server --socket PATH [--jobs N] [--lifeline]

Loading torch and Opacus takes seconds and some 300 MB; a forked child has them at once and shares the memory.
The server runs no task code, reads no data and holds no keys; it must be forked from nothing that does, so
the agent starts it as a new program. It has one thread and runs no tensor operation, which is what makes
forking safe. For the same reasons it forks the privacy accountant too (``ledger.accountant_service``), on the
first connection to a second socket; jobs do not inherit that socket, and share nothing with that process.

A client that hangs up has its child killed. With ``--lifeline`` the server ends, and its children with it,
when its standard input closes: when the agent that started it is gone, however it went. (PR_SET_PDEATHSIG
alone would end it with the *thread* that started it.) One server may serve several agents of one user.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import resource
import select
import shlex
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from cipherward.durable import explained
from cipherward.errors import CipherwardError, EnvironmentProblem, UsageError
from cipherward.site_agent.ledger import accounting
from cipherward.site_agent.ledger.accountant_service import IDLE_SECONDS, accounting_socket
from cipherward.site_agent.ledger.accountant_service import serve as serve_accounting

# What loads numpy or torch is imported in ``preload``, after the number of their threads is fixed.

_PR_SET_PDEATHSIG = 1
_POLLRDHUP = select.POLLRDHUP
_GONE = _POLLRDHUP | select.POLLHUP | select.POLLERR
_REQUEST_SECONDS = 60.0
_INSTALL = "Install the agent's dependencies: pip install 'cipherward[site]'"


class _Child:
    """A running job: its process and the connection that waits for it. Or the accountant, without one."""

    def __init__(self, pid: int, connection: socket.socket | None) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.connection = connection

    def fds(self) -> list[int]:
        return [self.pidfd] if self.connection is None else [self.pidfd, self.connection.fileno()]

    def close(self) -> None:
        os.close(self.pidfd)
        if self.connection is not None:
            self.connection.close()


class TrainerServer:
    """Accepts a connection, forks a child that serves it, reaps; at most ``jobs`` children at a time.

    ``accounting``: where the accountant listens; it is forked when somebody connects and none is running.
    """

    def __init__(
        self, listener: socket.socket, accounting: socket.socket, jobs: int, lifeline: int | None
    ) -> None:
        self._listener = listener
        self._accounting = accounting
        self._jobs = jobs
        self._lifeline = lifeline
        self._poll = select.poll()
        self._by_fd: dict[int, _Child] = {}
        self._accountant: _Child | None = None
        self._poll.register(listener, select.POLLIN)
        self._poll.register(accounting, select.POLLIN)
        if lifeline is not None:
            self._poll.register(lifeline, select.POLLIN)

    def serve(self) -> None:
        """Until the lifeline closes."""
        while True:
            ready = {fd for fd, _ in self._poll.poll()}
            if self._lifeline in ready and not os.read(self._lifeline, 1):
                self._kill_all()
                return
            # First what has ended, then what begins: a new connection may get a closed one's number.
            for fd in ready & self._by_fd.keys():
                child = self._by_fd.get(fd)
                if child is not None:  # not finished just now through its other descriptor
                    self._finish(child, killed=fd != child.pidfd)
            if self._listener.fileno() in ready:
                self._start()
            if self._accounting.fileno() in ready:
                self._start_accountant()

    def _start(self) -> None:
        connection, _ = self._listener.accept()
        pid = self._fork(lambda: serve_one(connection))
        child = _Child(pid, connection)
        self._by_fd[child.pidfd] = self._by_fd[connection.fileno()] = child
        self._poll.register(child.pidfd, select.POLLIN)
        self._poll.register(connection, _GONE)
        if self._running() >= self._jobs:
            self._poll.unregister(self._listener)  # the rest wait in the backlog

    def _start_accountant(self) -> None:
        self._accountant = _Child(self._fork(self._account, self._accounting), None)
        self._by_fd[self._accountant.pidfd] = self._accountant
        self._poll.register(self._accountant.pidfd, select.POLLIN)
        self._poll.unregister(self._accounting)  # it accepts by itself, until it ends

    def _account(self) -> None:
        try:
            serve_accounting(self._accounting, idle_seconds=IDLE_SECONDS)
        except Exception as error:  # noqa: BLE001 - whatever it is: its asker sees that nobody answers
            sys.stderr.write(f"trainer: the accountant met {type(error).__name__}: {error}\n")

    def _finish(self, child: _Child, *, killed: bool) -> None:
        """The child has exited, or its client has hung up."""
        if killed:
            os.kill(child.pid, signal.SIGKILL)
        _, status = os.waitpid(child.pid, 0)
        if os.WIFSIGNALED(status) and not killed:
            name = signal.Signals(os.WTERMSIG(status)).name
            what = "the accountant" if child is self._accountant else "a job"
            sys.stderr.write(f"trainer: {what} was ended by {name} (SIGKILL: often a lack of memory)\n")
        if child is self._accountant:
            self._poll.register(self._accounting, select.POLLIN)
        elif self._running() == self._jobs:
            self._poll.register(self._listener, select.POLLIN)
        for fd in child.fds():
            self._poll.unregister(fd)
            del self._by_fd[fd]
        child.close()
        if child is self._accountant:
            self._accountant = None

    def _running(self) -> int:
        return len({child for child in self._by_fd.values() if child is not self._accountant})

    def _kill_all(self) -> None:
        for child in set(self._by_fd.values()):
            os.kill(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)

    def _fork(self, work: Callable[[], None], kept: socket.socket | None = None) -> int:
        """A child that does the work and exits; its process id. ``kept``: the listener that it needs."""
        server = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become_child(work, server, kept)
        return pid

    def _become_child(self, work: Callable[[], None], server: int, kept: socket.socket | None) -> NoReturn:
        """In the new process: let go of what is the server's, do the work, exit. Never returns."""
        status = 1
        try:
            end_with_parent(server)
            for listener in (self._listener, self._accounting):
                if listener is not kept:
                    listener.close()
            if self._lifeline is not None:
                os.close(self._lifeline)
            # Another job's connection must close when its own child is gone.
            for child in set(self._by_fd.values()):
                child.close()
            work()
            status = 0
        except (OSError, EOFError):
            pass  # the client is gone; nobody is left to tell
        finally:
            sys.stderr.flush()
            os._exit(status)  # without the server's exit handlers


def serve_one(connection: socket.socket) -> None:
    """Answer the one request of a connection. Raises OSError or EOFError if the client goes away."""
    from cipherward.site_agent.training import jobs
    from cipherward.site_agent.training.protocol import receive, send

    try:
        connection.settimeout(_REQUEST_SECONDS)
        header, arrays = receive(connection)
        connection.settimeout(None)
        try:
            result, out = jobs.run(header, arrays)
        except (CipherwardError, MemoryError):
            raise
        except Exception as error:
            # Task code may raise anything, and its text may quote a patient's data: it goes nowhere.
            raise UsageError(
                f"the task {header.get('task')!r} failed in {header.get('job')!r}",
                why=f"it raised {type(error).__name__} at {_origin(str(header.get('task')), error)}",
                fix="The text is withheld, it may quote data: call the task on made-up data to see it",
            ) from error
    except MemoryError:
        problem = EnvironmentProblem("the training job ran out of memory", fix="Give the machine more memory")
        send(connection, {"error": _error(problem)})
    except CipherwardError as error:
        send(connection, {"error": _error(error)})
    else:
        send(connection, {"result": result}, out)


def _origin(task: str, error: Exception) -> str:
    """Where it failed, as file:line: in the task's own code if it came through that, else where it was
    raised."""
    from cipherward.site_agent.tasks.registry import entry_point

    places = [
        (Path(frame.f_code.co_filename), line) for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    module = sys.modules.get(entry_point(task).module)
    home = Path(getattr(module, "__file__", None) or ".")
    # A plug-in may be a package or one file among others' (as its digest sees it).
    packaged = bool(getattr(module, "__package__", None))
    own = [place for place in places if place[0] == home or (packaged and home.parent in place[0].parents)]
    path, line = (own or places)[-1]
    return f"{path}:{line}"


def _error(error: CipherwardError) -> dict[str, str]:
    return {"code": error.code, "what": error.what, "why": error.why, "fix": error.fix}


def end_with_parent(server: int) -> None:
    """Have the kernel kill this process when the server, whose only thread is its main thread, is gone."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != server:
        raise OSError("the server is gone")


def check_folder(path: Path) -> None:
    """Raises EnvironmentProblem if others than this user may enter the socket's folder."""
    with explained("use", path.parent):
        status = path.parent.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise EnvironmentProblem(
            f"will not listen in {path.parent}",
            why="others could connect, or the folder is someone else's",
            fix=f"Run: chmod 700 {shlex.quote(str(path.parent))}",
        )


def listen(path: Path) -> socket.socket:
    """Bind the socket. Raises EnvironmentProblem if a server is listening there, or it cannot be bound."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        address = f"/proc/self/fd/{folder}/{path.name}"  # sun_path holds 107 bytes, a folder's path more
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(address)
            except (FileNotFoundError, ConnectionRefusedError):
                path.unlink(missing_ok=True)
            else:
                raise EnvironmentProblem(f"a trainer is already listening at {path}")
        listener = socket.socket(socket.AF_UNIX)
        with explained("listen at", path):
            listener.bind(address)
        listener.listen(128)
    finally:
        os.close(folder)
    return listener


def preload() -> None:
    """Load what every job and the accountant need. Raises EnvironmentProblem if it is not installed.

    BLAS and OpenMP must start no threads of their own before the forks; a child that wants more sets them.
    """
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"
    try:
        from cipherward.site_agent.training import dpsgd, jobs
    except ImportError as error:
        raise EnvironmentProblem(
            "the trainer cannot load torch and Opacus", why=str(error), fix=_INSTALL
        ) from error
    del dpsgd, jobs
    accounting.load()
    gc.collect()
    gc.freeze()  # a collection in a child would copy the pages it touches


def main() -> int:
    """Run the server; returns its exit status."""
    parser = argparse.ArgumentParser(description="Serve training jobs on a Unix socket.")
    parser.add_argument("--socket", type=Path, required=True, help="where to listen; its folder must be 0700")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many may run at a time")
    parser.add_argument("--lifeline", action="store_true", help="end when standard input closes")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the agent, which ends this server
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold patients' data
    try:
        check_folder(options.socket)
        preload()
        # The trainer's own socket last: once it answers, the accountant's does too.
        accounts, listener = listen(accounting_socket(options.socket)), listen(options.socket)
        TrainerServer(listener, accounts, max(1, options.jobs), 0 if options.lifeline else None).serve()
    except CipherwardError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_status
    for path in (options.socket, accounting_socket(options.socket)):
        path.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
