"""Where the evaluation prints."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from rich.console import Console

from cipherward.durable import explained


def console() -> Console:
    """The terminal, or a log of 120 columns."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=120)


def check_writable(path: Path) -> None:
    """EnvironmentProblem at once, and not after the minutes of a run, if its results cannot be written to ``path``."""
    with explained("write", path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=path.parent):
            pass
