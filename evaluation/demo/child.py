"""Runs a module as a program that ends when the process that started it does: PARENT MODULE ARGUMENTS...

The child asks the kernel for that itself. A ``preexec_fn`` would run in a copy of a process whose other threads are
gone, and gRPC's fork handlers can abort there.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Becomes the module; ends at once if the parent is gone already."""
    parent, module = int(sys.argv[1]), sys.argv[2]
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(1)
    sys.argv[1:3] = []
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
