"""Peak memory of a process and of the workers below it, from /proc."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType
from typing import Self


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += [int(child), *_children(int(child))]
    return found


def private_bytes(pid: int) -> int:
    """Anonymous memory: what would not be there without this process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def peak_bytes(pid: int) -> int:
    """The most memory that a process has had resident since its start, shared pages included."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def tree_bytes(pid: int) -> int:
    """Private memory of a process and everything below it."""
    total = 0
    for each in [pid, *_children(pid)]:
        try:
            total += private_bytes(each)
        except (FileNotFoundError, ProcessLookupError):  # it ended between the two looks
            continue
    return total


class PeakMemory:
    """Samples ``tree_bytes`` every 5 ms; ``extra`` is the peak above the value at entry, in bytes."""

    def __init__(self, pid: int) -> None:
        self._pid, self.extra = pid, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        while not self._stop.wait(0.005):
            self.extra = max(self.extra, tree_bytes(self._pid) - self._start)

    def __enter__(self) -> Self:
        self._start = tree_bytes(self._pid)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
