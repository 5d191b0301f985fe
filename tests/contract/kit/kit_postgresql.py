"""A PostgreSQL of the tests' own: a fresh cluster in a temporary folder, on a Unix socket there, without TCP.

Its settings are PostgreSQL's own, fsync included. Text is sorted as in a dictionary, not by code point: code that
relies on the order of names must not rely on the database for it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import threading
import time
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


def name_of(url: str) -> str:
    """The database's name."""
    return url.partition("?")[0].rpartition("/")[2]


class PrivatePostgresql:
    """One server, which tests may stop and start. Each test makes a database of its own."""

    def __init__(self, folder: Path, programs: Path, user: str | None) -> None:
        self.folder, self._programs, self._user = folder, programs, user
        self._numbers = itertools.count(1)
        if user:
            shutil.chown(folder, user)
        self._run("initdb", "--auth=trust", "--username=tester", "--encoding=UTF8", "--no-instructions",
                  "--locale-provider=icu", "--icu-locale=en-US-u-ka-shifted",
                  "--no-sync", "-D", str(folder / "data"))  # fmt: skip

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

    def set(self, setting: str, value: str) -> None:
        """Change the server's configuration, and wait until it has."""
        self.psql(f"ALTER SYSTEM SET {setting} = {value}")
        self._control("reload")
        deadline = time.monotonic() + 10
        while self.psql(f"SHOW {setting}") != value:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def require_password(self, role: str | None) -> None:
        """Of that role alone, or of nobody."""
        rules = self.folder / "data" / "pg_hba.conf"
        kept = [line for line in rules.read_text().splitlines() if "scram-sha-256" not in line]
        first = [f"local all {role} scram-sha-256"] if role else []
        rules.write_text("\n".join([*first, *kept, ""]))
        self._control("reload")

    def end_sessions(self, url: str) -> None:
        """End all sessions on that database, and wait until they have."""
        sessions = f"FROM pg_stat_activity WHERE datname = '{name_of(url)}'"
        self.psql(f"SELECT pg_terminate_backend(pid, 10000) {sessions}")

    def copy(self, source: str, target: str) -> None:
        """``pg_dump`` of the one while it is used, ``pg_restore`` to the other, which is empty."""
        dump = self.folder / f"{name_of(source)}.dump"
        login = ["-h", str(self.folder), "-U", "tester"]
        self._run("pg_dump", *login, "--format=custom", "-f", str(dump), name_of(source))
        self._run("pg_restore", *login, "--no-owner", "--exit-on-error", "-d", name_of(target), str(dump))

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"test{next(self._numbers)}"
        self.psql(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://tester@/{name}?host={self.folder}"

    def drop(self, url: str) -> None:
        """It is needed no longer."""
        self.psql(f"DROP DATABASE {name_of(url)} WITH (FORCE)")


def in_memory() -> Path | None:
    """Where tests need not wait for a disk that others use: they crash the server, not the machine."""
    memory = Path("/dev/shm")
    enough = memory.is_dir() and shutil.disk_usage(memory).free > 2 * 2**30
    return memory if enough and os.access(memory, os.W_OK) else None


@contextlib.contextmanager
def private_postgresql(place: Path | None = None) -> Iterator[PrivatePostgresql]:
    """Started, in a folder in ``place``; skips where there is no PostgreSQL, unless it must be there."""
    found = programs()
    if found is None:
        reason = "no initdb: install Debian's package postgresql to run this"
        if os.environ.get(REQUIRED):
            pytest.fail(f"{reason} ({REQUIRED} is set)")
        pytest.skip(reason)
    folder = Path(
        tempfile.mkdtemp(prefix="cw-pg-", dir=place)
    )  # short: a socket's path has 107 bytes at most
    try:
        server = PrivatePostgresql(folder, found, account())
        server.start()
        try:
            yield server
        finally:
            server.stop("immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Proxy:
    """Between a coordinator and its server, on a Unix socket of its own: loses what it is told to lose."""

    def __init__(self, server: PrivatePostgresql) -> None:
        self._server, self.folder = server, Path(tempfile.mkdtemp(prefix="cw-px-"))
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(self.folder / ".s.PGSQL.5432"))
        self._listening.listen()
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self.reachable = True
        self.lose_commit = self.lose_answer = self._half_open = False
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, url: str) -> str:
        """The same database, through here."""
        return url.replace(str(self._server.folder), str(self.folder))

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            if not self.reachable:
                client.close()
                continue
            server = socket.socket(socket.AF_UNIX)
            server.connect(str(self._server.folder / ".s.PGSQL.5432"))
            with self._lock:
                self._pairs.append((client, server))
            for source, sink in ((client, server), (server, client)):
                threading.Thread(
                    target=self._pump, args=(source, sink, source is client), daemon=True
                ).start()

    def _pump(self, source: socket.socket, sink: socket.socket, outward: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if outward and self.lose_commit and b"COMMIT" in data:
                    break
                if not outward and self.lose_answer and b"COMMIT\0" in data:
                    break  # the tag of the server's answer: it is done
                sink.sendall(data)
        if not (outward and self._half_open):
            for end in (source, sink):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """The client's connections end; the server does not hear of it, as when a router forgets them."""
        self._half_open = True
        with self._lock:
            for client, _server in self._pairs:
                with contextlib.suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """No more."""
        self._listening.close()
        with self._lock:
            for pair in self._pairs:
                for end in pair:
                    end.close()
        shutil.rmtree(self.folder)
