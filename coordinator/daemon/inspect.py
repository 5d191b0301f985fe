"""What ``coordinator status`` shows: the store, read with or without a running service, and not changed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cipherward.coordinator.daemon.folder import ADDRESS, DATABASE, database_url
from cipherward.coordinator.rounds.state import State
from cipherward.coordinator.store.database import MIGRATIONS, Transaction
from cipherward.coordinator.store.studies import RoundFigures
from cipherward.database import reading
from cipherward.errors import EnvironmentProblem


@dataclass(frozen=True, slots=True)
class StoredStudy:
    """One study as stored."""

    name: str
    state: State
    versions: int
    history: list[RoundFigures]


def stored_url(folder: Path, database: str = "") -> str:
    """Where the coordinator in ``folder`` has its database; EnvironmentProblem if none has been there."""
    if not database and not (folder / DATABASE).exists():
        raise EnvironmentProblem(
            f"{folder} has no {DATABASE}",
            why="no coordinator has run there",
            fix="Check --dir, and --database if it has another one; or start it with `cipherward coordinator run`",
        )
    return database or database_url(folder)


def read_studies(folder: Path, database: str = "") -> list[StoredStudy]:
    """All studies of the coordinator in ``folder``; raises EnvironmentProblem."""
    with reading(
        stored_url(folder, database), MIGRATIONS, "the coordinator's database cannot be read"
    ) as connection:
        t = Transaction.on(connection)
        return [
            StoredStudy(
                row.study, row.state, len(t.studies.manifests(row.study)), t.studies.history(row.study)
            )
            for row in t.studies.all()
        ]


def read_address(folder: Path) -> str:
    """Where the service of that folder listens; empty if it does not run."""
    try:
        return (folder / ADDRESS).read_text().strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise EnvironmentProblem(f"cannot read {folder / ADDRESS}", why=str(error)) from error
