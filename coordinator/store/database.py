"""Opening the store, and its transactions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, IntegrityError

from cipherward.coordinator.store.chunks import ChunkTable
from cipherward.coordinator.store.owner import outcome, owner_of
from cipherward.coordinator.store.relay import RelayTable
from cipherward.coordinator.store.studies import StudyTable
from cipherward.database import explained, make_engine, migrate
from cipherward.errors import EnvironmentProblem, OutageError

MIGRATIONS = Path(__file__).parent / "migrations"
SETTLE_SECONDS = 4.0
"""How long a commit that was not answered may keep its caller waiting."""
OUTAGE_SECONDS = 1.0
"""After a server did not answer, it is left alone for so long: callers do not queue up behind a time limit."""
_WHAT = "the coordinator's database cannot be used"


@dataclass(frozen=True, slots=True)
class Transaction:
    """All reads and writes within it are one."""

    studies: StudyTable
    chunks: ChunkTable
    relay: RelayTable

    @classmethod
    def on(cls, connection: Connection) -> Transaction:
        """The tables over one connection."""
        return cls(StudyTable(connection), ChunkTable(connection), RelayTable(connection))


class Store:
    """The database, upgraded to this version's schema, for this process alone. One thread at a time."""

    def __init__(self, url: str) -> None:
        """``sqlite:///PATH`` or ``postgresql+psycopg://...``.

        Raises EnvironmentProblem, also if another coordinator process has the database.
        """
        self._engine = make_engine(url)
        self._unsettled: str | None = None
        self._outage: tuple[float, EnvironmentProblem] | None = None
        self._lost: EnvironmentProblem | None = None
        self._when_lost: Callable[[], object] = lambda: None
        self._owner = owner_of(self._engine)
        try:
            migrate(self._engine, MIGRATIONS)
            with self._engine.begin() as connection:
                self.name = self._owner.claim(connection)
                """The database's own, 32 hexadecimal digits: what it keeps elsewhere is marked with it."""
        except BaseException as error:
            self.close()
            if isinstance(error, DBAPIError):
                raise explained(error, _WHAT) from error
            raise

    def when_lost(self, action: Callable[[], object]) -> None:
        """Call ``action``, in the store's thread, when this process must not go on."""
        self._when_lost = action

    def require_own(self) -> None:
        """Raises EnvironmentProblem if this process must not go on: what it holds in memory may be outdated."""
        if self._lost is not None:
            raise _again(self._lost)

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Commits durably at the end, or changes nothing.

        Raises EnvironmentProblem, e.g. if the disk is full; OutageError if the database does not answer: the next
        transaction tries again. IntegrityError for a second row with the same key.
        """
        self.require_own()
        self._settle_former()
        ticket = None
        try:
            with self._connected() as connection, connection.begin() as transaction:
                yield Transaction.on(connection)
                ticket = self._owner.ticket(connection)
                transaction.commit()
        except IntegrityError:
            raise
        except DBAPIError as error:
            problem = explained(error, _WHAT)
            if ticket is None or not isinstance(problem, OutageError) or not self._was_committed(ticket):
                raise problem from error

    def _connected(self) -> Connection:
        if self._outage is not None and time.monotonic() < self._outage[0]:
            raise _again(self._outage[1])
        try:
            connection = self._engine.connect()
        except DBAPIError as error:
            problem = explained(error, _WHAT)
            self._outage = (time.monotonic() + OUTAGE_SECONDS, problem)
            raise problem from error
        except EnvironmentProblem as problem:  # whoever took the connection up again
            self._lose(problem)
            raise
        self._outage = None
        return connection

    def _was_committed(self, ticket: str) -> bool:
        """The connection broke in a commit: ask over a new one what came of it. False if nobody could say yet."""
        self._unsettled = ticket
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline:
            try:
                return self._settled()
            except OutageError:
                time.sleep(0.1)
            except EnvironmentProblem:
                break  # this process must end: nobody here can say
        return False

    def _settled(self) -> bool:
        try:
            with self._connected() as connection:
                committed = outcome(connection, self._unsettled or "")
        except DBAPIError as error:
            problem = explained(error, _WHAT)
            self._lose_unless_away(problem)
            raise problem from error
        except EnvironmentProblem as problem:
            self._lose_unless_away(problem)
            raise
        self._unsettled = None
        return committed

    def _lose_unless_away(self, problem: EnvironmentProblem) -> None:
        if not isinstance(problem, OutageError):
            self._lose(problem)

    def _settle_former(self) -> None:
        """The caller of an earlier commit was told that it failed. If it did not, memory is behind the database."""
        if self._unsettled is not None and self._settled():
            self._lose(
                EnvironmentProblem(
                    "the coordinator must start again",
                    why="the database kept a change that was taken for lost with the connection",
                    fix="Start it: it reads everything anew",
                )
            )
            self.require_own()

    def _lose(self, problem: EnvironmentProblem) -> None:
        if self._lost is None:
            self._lost = problem
            self._when_lost()

    def close(self) -> None:
        """Release its connections and its hold on the database."""
        self._engine.dispose()
        self._owner.release()


def _again(problem: EnvironmentProblem) -> EnvironmentProblem:
    return type(problem)(problem.what, why=problem.why, fix=problem.fix)
