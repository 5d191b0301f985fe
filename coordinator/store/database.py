"""Opening the store, and its transactions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from cipherward.coordinator.store.chunks import ChunkTable
from cipherward.coordinator.store.relay import RelayTable
from cipherward.coordinator.store.studies import StudyTable
from cipherward.database import open_database
from cipherward.errors import EnvironmentProblem

MIGRATIONS = Path(__file__).parent / "migrations"


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
    """The database, upgraded to this version's schema."""

    def __init__(self, url: str) -> None:
        """``sqlite:///PATH`` or another SQLAlchemy URL; raises EnvironmentProblem."""
        self._engine = open_database(url, MIGRATIONS)

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Commits durably at the end, or changes nothing. EnvironmentProblem, e.g. if the disk is full."""
        try:
            with self._engine.begin() as connection:
                yield Transaction.on(connection)
        except OperationalError as error:
            raise EnvironmentProblem(
                "the coordinator's database cannot be written",
                why=str(error.orig).strip().lower(),
                fix="Free space on its disk; nothing acknowledged is lost",
            ) from error

    def close(self) -> None:
        """Release its connections."""
        self._engine.dispose()
