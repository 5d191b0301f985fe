"""Arms ``faults.c`` in a process, its own or another: which call that changes a file is to fail, and how."""

from __future__ import annotations

import errno
import importlib.util
import mmap
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from cipherward.errors import CipherwardError, EnvironmentProblem, UnavailableError

SIZE = 264
OFF, ONCE, FULL = 0, 1, 2
KINDS = {"EIO": (ONCE, errno.EIO), "ENOSPC": (FULL, errno.ENOSPC)}
"""A disk that fails once, and one that is full from then on."""


def load(name: str, path: Path) -> ModuleType:
    """Another test's kit or fixtures, as a module."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class Faults:
    """The control block, shared with the processes that were started with ``environment``."""

    def __init__(self, control: Path, under: Path, library: Path) -> None:
        if not control.exists():
            control.write_bytes(bytes(SIZE))
        with control.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), SIZE)
        self.environment = {
            "LD_PRELOAD": str(library),
            "CW_FAULTS": str(control),
            "CW_FAULTS_UNDER": str(under),
        }

    @classmethod
    def of_this_process(cls) -> Faults:
        """In a process that was started with ``environment``."""
        control, under = Path(os.environ["CW_FAULTS"]), Path(os.environ["CW_FAULTS_UNDER"])
        return cls(control, under, Path(os.environ["LD_PRELOAD"]))

    def arm(self, kind: str, at: int = 1) -> None:
        """Begin failing at the ``at``-th call from now on."""
        mode, error = KINDS[kind]
        self._memory[:] = struct.pack("=qqqii", 0, at, 0, mode, error).ljust(SIZE, b"\0")

    def disarm(self) -> None:
        """The disk is well again."""
        self._memory[24:28] = struct.pack("=i", OFF)

    @property
    def hits(self) -> int:
        """Calls that were made to fail since ``arm``."""
        return int(struct.unpack_from("=q", self._memory, 16)[0])

    @property
    def last(self) -> str:
        """The last call that failed, and on which file."""
        return bytes(self._memory[32:]).split(b"\0")[0].decode()

    @contextmanager
    def failing(self, kind: str, at: int) -> Iterator[list[CipherwardError]]:
        """Runs the block with the fault. Gives a list that then holds our error, if there was one.

        Any other exception, and an error of ours that blames somebody else, ends the test.
        """
        raised: list[CipherwardError] = []
        self.arm(kind, at)
        try:
            yield raised
        except (EnvironmentProblem, UnavailableError) as error:
            if "\n" in str(error) or not self.hits:
                raise
            raised.append(error)
        finally:
            self.disarm()
