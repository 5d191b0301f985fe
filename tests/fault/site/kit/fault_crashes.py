"""Dying at a named point, once for each point, and being started again: kill -9 at every transition.

A supervisor loads the program's modules once and forks a child for every life, before anything of it has begun, so
that a hundred deaths cost a hundred forks and not a hundred imports.
"""

import ctypes
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

_PR_SET_PDEATHSIG = 1


class Crashes:
    """Points still to die at. ``file`` remembers those that were died at, over all lives."""

    def __init__(self, file, wanted):
        self._file = Path(file)
        died = self._file.read_text().split() if self._file.exists() else []
        self.left = [point for point in wanted if point not in died]

    @classmethod
    def from_environment(cls, folder):
        """``CRASH_AT=POINT,POINT,...``: die at each of them, whichever comes first."""
        wanted = os.environ.get("CRASH_AT", "").split(",")
        return cls(Path(folder) / "crashes.txt", [point for point in wanted if point])

    def at(self, *points):
        """Die here, which has all these names (one of them twice, where two sites' segments share a commit), if one of
        them is wanted and was not died at before."""
        if here := [point for point in dict.fromkeys(points) if point in self.left]:
            with self._file.open("a") as file:
                file.write("".join(f"{point}\n" for point in here))
            os.kill(os.getpid(), int(os.environ.get("SIGNAL", signal.SIGKILL)))
            self.left = []  # of a life that a milder signal ends, this is the end all the same


def supervise():
    """Returns in a child, again for each child that was killed; in the parent it ends the process like the child
    that ended by itself."""
    child = 0

    def stop(number, _frame):
        if child:
            os.kill(child, number)

    while True:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        child = os.fork()
        if child == 0:
            # If the supervisor is killed, so is the child.
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            return
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            sys.exit(os.waitstatus_to_exitcode(status))


def hurry(module, **constants):
    """Shorten times that a test would only sit out."""
    for name, value in constants.items():
        if not hasattr(module, name):
            raise AttributeError(f"{module.__name__} has no {name}")
        setattr(module, name, value)


def after_commit(store, crashes):
    """``store.transaction`` as before; ``note(point)`` within it dies at POINT:before, ahead of the commit, and at
    POINT:after, once it is durable."""
    original, pending = store.transaction, []

    @contextmanager
    def transaction(self):
        pending.clear()
        with original(self) as t:
            yield t
            crashes.at(*(f"{point}:before" for point in pending))
        crashes.at(*(f"{point}:after" for point in pending))

    store.transaction = transaction
    return pending.append
