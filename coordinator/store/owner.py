"""One coordinator process to a database, for as long as it lives. Two would sign two histories of a study.

Everything that a process has in memory was read from the database, so it may go on only while nobody else can
have written to it. Here a process takes the database, finds out when it has lost it, and fails closed.
"""

from __future__ import annotations

import fcntl
import os
import time
import weakref
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, event, select, update

from cipherward.coordinator.store.schema import identity
from cipherward.database import shown
from cipherward.durable import explained
from cipherward.errors import EnvironmentProblem, OutageError

_LOCK = 0x43575244
"""First half of the advisory lock's key, "CWRD"; the second is the schema's name, hashed."""
WAIT_SECONDS = 5.0
"""For a process before this one that was killed: its server has to notice."""


class Owner(Protocol):
    """Holds a database for this process."""

    def claim(self, connection: Connection) -> str:
        """Once the schema is there: begin a new generation. Returns the database's own name."""

    def ticket(self, connection: Connection) -> str | None:
        """By what the server will know the transaction in progress if its commit is not answered."""

    def release(self) -> None:
        """Let another process have it."""


def _taken(url: str, why: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"another coordinator uses the database {url}", why=why, fix="Stop that one first"
    )


def _new_generation(connection: Connection) -> tuple[str, int]:
    connection.execute(update(identity).values(generation=identity.c.generation + 1))
    row = connection.execute(select(identity)).one()
    return row.name, row.generation


class FileOwner:
    """SQLite: a lock file beside the database. The kernel lets go of it when the process ends."""

    def __init__(self, engine: Engine) -> None:
        """Raises EnvironmentProblem if another process has the database."""
        path = Path(f"{Path(engine.url.database or '').resolve()}.lock")
        with explained("open", path):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._closing = weakref.finalize(self, os.close, fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._closing()
            raise _taken(shown(engine.url), f"it holds the lock {path}") from error

    def claim(self, connection: Connection) -> str:
        """See ``Owner``."""
        return _new_generation(connection)[0]

    def ticket(self, connection: Connection) -> str | None:
        """None: a commit is a call into a library, and is always answered."""
        return None

    def release(self) -> None:
        """See ``Owner``."""
        self._closing()


class SessionOwner:
    """PostgreSQL: an advisory lock of the one session that also does the writing: no write without the lock.

    A session that breaks takes the lock with it. The next one takes it anew, and is used only if the generation
    says that nobody had the database in between, and the timeline that the server is the one it was: a standby
    that took over may lack the last transactions.
    """

    def __init__(self, engine: Engine) -> None:
        """The lock is taken with the first connection."""
        self._url = shown(engine.url)
        self._generation: int | None = None
        self._timeline: str | None = None
        self._session: tuple[int, str] | None = None  # the server's process, and when it began
        event.listen(engine, "connect", self._connected)

    def claim(self, connection: Connection) -> str:
        """See ``Owner``."""
        name, self._generation = _new_generation(connection)
        return name

    def ticket(self, connection: Connection) -> str | None:
        """The transaction's id; None if it has written nothing."""
        found = connection.exec_driver_sql("SELECT pg_current_xact_id_if_assigned()::text").scalar_one()
        return None if found is None else str(found)

    def release(self) -> None:
        """The pool closes the session, and with it goes the lock."""

    def _connected(self, connection: Any, _record: Any) -> None:
        try:
            connection.autocommit = True
            self._take(connection)
            connection.autocommit = False
        except BaseException:
            connection.close()
            raise

    def _take(self, connection: Any) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not _one(connection, "SELECT pg_try_advisory_lock(%s, hashtext(current_schema()))", _LOCK):
            if self._session is not None:
                # A session of our own of which only the server does not know yet that it broke.
                _one(
                    connection,
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                    "WHERE pid = %s AND backend_start::text = %s",
                    *self._session,
                )
            if time.monotonic() > deadline:
                raise _taken(self._url, "it holds the lock")
            time.sleep(0.05)
        if self._generation is not None:
            found = _one(connection, "SELECT generation FROM identity")
            if found != self._generation:
                raise _taken(
                    self._url,
                    f"it took it when this process had lost its connection (generation {found})",
                )
        timeline = _one(connection, "SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)")
        if self._timeline not in (None, timeline):
            raise EnvironmentProblem(
                "the coordinator must start again",
                why=f"another server has taken over the database {self._url}, and may lack the last changes",
                fix="Start it: it reads everything anew. Make sure that standbys are synchronous",
            )
        self._timeline = timeline
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pid, backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid()"
            )
            self._session = cursor.fetchone()


def _one(connection: Any, query: str, *parameters: Any) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(query, parameters)
        return cursor.fetchone()[0]


def outcome(connection: Connection, ticket: str) -> bool:
    """Whether the transaction was committed whose answer did not come.

    Raises OutageError while that is not decided, EnvironmentProblem (or the database's error) if the server does not
    know of it: then it is not the one that was asked to commit.
    """
    status = connection.exec_driver_sql("SELECT pg_xact_status(%s::xid8)", (ticket,)).scalar_one()
    if status == "in progress":
        raise OutageError("the coordinator's database is still busy with the last change")
    if status is None:
        raise EnvironmentProblem(
            "the coordinator must start again",
            why="the database does not know a change that it was asked to keep",
            fix="Start it: it reads everything anew. Make sure that standbys are synchronous",
        )
    return bool(status == "committed")


def owner_of(engine: Engine) -> Owner:
    """What keeps other processes from this database."""
    return FileOwner(engine) if engine.dialect.name == "sqlite" else SessionOwner(engine)
