"""Files that are either the old content or the new, also after a power cut; secret ones are never readable
by others, not even for an instant."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import secrets
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from cipherward.errors import EnvironmentProblem

_FULL = {errno.ENOSPC, errno.EDQUOT}

TEMPORARY = ".tmp"
"""How names of files end that are being written; they begin with a dot."""
_DIRECT_BYTES = 2**20
STALE_SECONDS = 60.0
"""A file that nobody has written to for so long, and that should have had its name by then, never gets it."""


@contextmanager
def explained(what: str, path: Path | str) -> Iterator[None]:
    """Turn an OSError into an EnvironmentProblem that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise EnvironmentProblem(
                f"cannot {what} {path}",
                why="the disk is full",
                fix="Free space and start again; nothing acknowledged is lost",
            ) from error
        fix = {
            errno.ENOENT: "Check the path",
            errno.EACCES: "Check the owner and mode of the file and its folder",
            errno.EROFS: "Choose a folder on a writable file system",
        }.get(error.errno or 0, "")
        reason = (os.strerror(error.errno) if error.errno else str(error)).lower()
        raise EnvironmentProblem(f"cannot {what} {path}", why=reason, fix=fix) from error


def fsync_directory(path: Path) -> None:
    """Make a rename or unlink in ``path`` durable; raises EnvironmentProblem."""
    with explained("write", path):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def discard(path: Path) -> None:
    """Remove what a failed write left, as far as the disk still lets us: the write's own error is the one to tell."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


def write_file(path: Path, content: bytes | memoryview, *, mode: int = 0o644, replace: bool = True) -> None:
    """Write by temp file, fsync, rename (or link, if it must not replace), directory fsync.

    Raises EnvironmentProblem; ``path`` then has its old content, or does not exist. Only if nothing but the sync
    of its folder failed, a replaced ``path`` may have either.
    """

    def fill(fd: int) -> None:
        with os.fdopen(fd, "wb", closefd=False) as file:
            file.write(content)

    _write(path, fill, mode, replace=replace)


def write_bulk(path: Path, content: Sequence[bytes] | memoryview, *, mode: int) -> None:
    """As ``write_file``, for megabytes: past the page cache where the file system can, which would take a copy of
    them and new memory for it, at several times the cost of the write itself. Parts follow each other. A memoryview
    begins at a page's beginning, and is not copied even once."""

    def fill(fd: int) -> None:
        _set_direct(fd, on=True)
        if isinstance(content, memoryview):
            _write_end(fd, content)
            return
        buffer, filled = _aligned.buffer, 0
        for part in content:
            rest = memoryview(part)
            while rest:
                taken = min(len(rest), _DIRECT_BYTES - filled)
                buffer[filled : filled + taken] = rest[:taken]
                rest, filled = rest[taken:], filled + taken
                if filled == _DIRECT_BYTES:
                    _write_all(fd, buffer)
                    filled = 0
        _write_end(fd, buffer[:filled])

    _write(path, fill, mode, replace=True)


def _write(path: Path, fill: Callable[[int], None], mode: int, *, replace: bool) -> None:
    with explained("write", path):
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{TEMPORARY}")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        try:
            try:
                os.fchmod(fd, mode)  # whatever the umask
                fill(fd)
                os.fsync(fd)
            finally:
                os.close(fd)
            if replace:
                temporary.replace(path)
            else:
                os.link(temporary, path)
        except BaseException:
            discard(temporary)
            raise
        if not replace:
            discard(temporary)
        try:
            fsync_directory(path.parent)
        except EnvironmentProblem:
            if not replace:
                discard(path)  # it does not exist, as promised: the caller may make another one
            raise


class _Aligned(threading.local):
    """A thread's buffer, which begins at a page's beginning as direct writes must."""

    def __init__(self) -> None:
        self.buffer = memoryview(mmap.mmap(-1, _DIRECT_BYTES))


_aligned = _Aligned()


def _set_direct(fd: int, *, on: bool) -> None:
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    with suppress(OSError):  # a file system that cannot
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags & ~os.O_DIRECT)


def _write_end(fd: int, content: memoryview) -> None:
    """Direct writes end at a page's end: the rest goes another way."""
    whole = len(content) - len(content) % mmap.PAGESIZE
    _write_all(fd, content[:whole])
    _set_direct(fd, on=False)
    _write_all(fd, content[whole:])


def _write_all(fd: int, content: memoryview) -> None:
    while content:
        try:
            content = content[os.write(fd, content) :]
        except OSError as error:
            if error.errno != errno.EINVAL or not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
                raise
            _set_direct(fd, on=False)  # its blocks are larger than our pages, or it stopped amid one


def interrupted(folder: Path, now: float) -> list[Path]:
    """Files in ``folder`` and the folders in it whose writing was interrupted. ``now`` in Unix seconds."""
    found = []
    for pattern in (f".*{TEMPORARY}", f"*/.*{TEMPORARY}"):
        for path in folder.glob(pattern):
            with suppress(OSError):  # it has its name by now
                if path.is_file() and path.stat().st_mtime < now - STALE_SECONDS:
                    found.append(path)
    return sorted(found)


def write_secret(path: Path, content: bytes | memoryview, *, replace: bool = False) -> None:
    """As ``write_file``, readable by the owner only. By default an existing secret is never overwritten."""
    write_file(path, content, mode=0o600, replace=replace)


def read_file(path: Path, *, limit: int = 64 * 2**20) -> bytes:
    """The content; raises EnvironmentProblem if it is missing, unreadable or larger than ``limit`` bytes."""
    with explained("read", path), path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise EnvironmentProblem(
            f"cannot read {path}", why=f"it is larger than {limit} bytes", fix="Check the path"
        )
    return content


def read_secret(path: Path) -> bytes:
    """As ``read_file``; refuses a file that others may read."""
    with explained("read", path):
        mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise EnvironmentProblem(
            f"will not use the secret file {path}",
            why=f"its mode {mode:04o} lets others read it",
            fix=f"Run: chmod 600 {shlex.quote(str(path))}",
        )
    return read_file(path)


class FolderLock:
    """One running daemon per folder. The kernel lets go of it when the process ends, however it ends.

    Who takes it removes what a daemon before it was killed over writing.
    """

    def __init__(self, folder: Path, daemon: str) -> None:
        """``daemon``: what runs there, e.g. ``a site agent``. EnvironmentProblem if another process has it."""
        path = folder / "lock"
        with explained("open", path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._fd)
            raise EnvironmentProblem(
                f"{daemon} is already running in {folder}",
                why="it holds the folder's lock",
                fix="Stop that one first",
            ) from error
        for left in interrupted(folder, time.time()):
            discard(left)

    def release(self) -> None:
        """Let go."""
        os.close(self._fd)
