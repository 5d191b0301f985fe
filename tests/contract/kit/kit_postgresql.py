"""A PostgreSQL of the tests' own: a fresh cluster in a temporary folder, on a Unix socket there, without TCP.

Its settings are PostgreSQL's own, fsync included. Text is sorted as in English, not by code point: code that relies
on the order of names must not rely on the database for it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

REQUIRED = "CIPHERWARD_REQUIRE_POSTGRESQL"


def programs() -> Path | None:
    """The folder of ``initdb`` and ``pg_ctl``: Debian keeps them off PATH, one folder to a version."""
    packaged = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    found = [str(path) for path in packaged[-1:]] or [shutil.which("initdb") or ""]
    return Path(found[0]).resolve().parent if found[0] else None


def account() -> str | None:
    """Whom PostgreSQL runs as: it refuses to run as root. None: as ourselves."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise LookupError("no account to run PostgreSQL as")


class PrivatePostgresql:
    """One server, which tests may stop and start. Each test makes a database of its own."""

    def __init__(self, folder: Path, programs: Path, user: str | None) -> None:
        self.folder, self._programs, self._user = folder, programs, user
        self._numbers = itertools.count(1)
        if user:
            shutil.chown(folder, user)
        self._run("initdb", "--auth=trust", "--username=tester", "--encoding=UTF8", "--no-instructions",
                  "--locale-provider=icu", "--icu-locale=en-US", "--no-sync", "-D", str(folder / "data"))  # fmt: skip

    def _run(self, program: str, *arguments: str) -> None:
        options = {"user": self._user, "group": pwd.getpwnam(self._user).pw_gid} if self._user else {}
        # Not a pipe: the server would inherit it, and keep it open.
        with (self.folder / "output").open("a+b") as output:
            done = subprocess.run(
                [self._programs / program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.folder,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
                **options,
                extra_groups=[] if self._user else None,
            )
            if done.returncode != 0:
                raise RuntimeError((self.folder / "output").read_text())

    def _control(self, *arguments: str) -> None:
        self._run("pg_ctl", "-w", "-D", str(self.folder / "data"), *arguments)

    def start(self) -> None:
        """Serve."""
        options = f"-c listen_addresses='' -c unix_socket_directories='{self.folder}'"
        self._control("start", "-l", str(self.folder / "log"), "-o", options)

    def stop(self, mode: str = "fast") -> None:
        """``fast`` ends sessions; ``immediate`` is a crash."""
        self._control("stop", "-m", mode)

    def restart(self, mode: str = "fast") -> None:
        """As after an update of its package, or a crash."""
        self.stop(mode)
        self.start()

    def psql(self, command: str, database: str = "postgres") -> str:
        """What an administrator runs."""
        done = subprocess.run(
            [self._programs / "psql", "-h", self.folder, "-U", "tester", "-d", database, "-XAtc", command],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"test{next(self._numbers)}"
        self.psql(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://tester@/{name}?host={self.folder}"


@contextlib.contextmanager
def private_postgresql() -> Iterator[PrivatePostgresql]:
    """Started; skips where there is no PostgreSQL, unless it must be there."""
    found = programs()
    if found is None:
        reason = "no initdb: install Debian's package postgresql to run this"
        if os.environ.get(REQUIRED):
            pytest.fail(f"{reason} ({REQUIRED} is set)")
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="cw-pg-"))  # short: a socket's path has 107 bytes at most
    try:
        server = PrivatePostgresql(folder, found, account())
        server.start()
        try:
            yield server
        finally:
            server.stop("immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
