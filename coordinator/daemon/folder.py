"""The coordinator's folder: what the service adds to the identity that ``coordinator init`` made there."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from cipherward.durable import explained, write_file
from cipherward.errors import EnvironmentProblem

DATABASE, BLOBS, ADDRESS, LOCK = "coordinator.db", "blobs", "address", "lock"


def database_url(folder: Path) -> str:
    """The default database."""
    return f"sqlite:///{folder.absolute()}/{DATABASE}"


def blobs_url(folder: Path) -> str:
    """The default place for blobs."""
    return f"file://{folder.absolute()}/{BLOBS}"


def write_address(folder: Path, address: str) -> None:
    """Where the service listens, for scripts: HOST:PORT and a newline."""
    write_file(folder / ADDRESS, f"{address}\n".encode())


def remove_address(folder: Path) -> None:
    """The service does not listen, or no longer."""
    with explained("delete", folder / ADDRESS):
        (folder / ADDRESS).unlink(missing_ok=True)


class FolderLock:
    """One running coordinator per folder. The kernel lets go of it when the process ends, however it ends."""

    def __init__(self, folder: Path) -> None:
        """Raises EnvironmentProblem if another process has it."""
        path = folder / LOCK
        with explained("open", path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._fd)
            raise EnvironmentProblem(
                f"a coordinator is already running in {folder}",
                why="it holds the folder's lock",
                fix="Stop that one first",
            ) from error

    def release(self) -> None:
        """Let go."""
        os.close(self._fd)
