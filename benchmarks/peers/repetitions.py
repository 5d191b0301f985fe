"""How a measuring script talks to ``run.py``. Standard library only: it runs in every virtual environment.

``run.py`` asks, the script answers, so that repetitions of several systems can take turns on one machine.
On its standard input a script reads ``{"peaks": bool}`` lines; for each it does everything once and answers
with a line: ``{"seconds": {...}, "bytes": {...}, "peaks": {...}}``. The first line it writes is its greeting,
``{"threads": n}``. It ends at the end of its input.

Seconds are processor time, of all threads. On one processor that nobody else uses it is the time that passes;
on a busy machine it leaves out the waiting for others, which would only measure them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Repetition:
    """What one repetition found. ``peaks``: bytes of memory above what the process had at entry, where asked.

    ``clock`` gives seconds of processor time; a script with a worker process adds that one's.
    """

    measure_peaks: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    clock: Callable[[], float] = time.process_time

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the time of the block to the step ``name``."""
        start = self.clock()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self.clock() - start

    @contextmanager
    def peak(self, name: str) -> Iterator[None]:
        """Largest growth of this process's memory in the block, and the largest of several blocks.

        From the kernel's own high-water mark: a thread that samples would be blind in native code that holds
        the interpreter's lock, as TenSEAL's does.
        """
        if not self.measure_peaks:
            yield
            return
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to VmRSS
        yield
        self.peaks[name] = max(self.peaks.get(name, 0), _resident("VmHWM") - before)


def _resident(field_name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field_name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field_name}")


def serve(prepare: Callable[[argparse.Namespace], Callable[[Repetition], None]], *options: str) -> None:
    """Answer repetitions until the input ends.

    ``prepare`` gets ``--parameters`` and ``--sites`` (integers) and the script's own ``options`` (strings), and
    returns what does one repetition. Everything runs on one processor, worker processes included.
    """
    parser = argparse.ArgumentParser(description="One system's measurements; run.py starts this.")
    for name in ("--parameters", "--sites"):
        parser.add_argument(name, type=int, required=True)
    for name in options:
        parser.add_argument(name, required=True)
    arguments = parser.parse_args()
    # Native code prints warnings to standard output: only answers may go there.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

    def answer(content: object) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    try:
        repeat = prepare(arguments)
        answer({"threads": len(os.sched_getaffinity(0))})
        for line in sys.stdin:
            done = Repetition(json.loads(line)["peaks"])
            repeat(done)
            answer({"seconds": done.seconds, "bytes": done.bytes, "peaks": done.peaks})
    except KeyboardInterrupt:  # run.py, which gets the same signal, says so
        sys.exit(130)
