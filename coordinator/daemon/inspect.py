"""What ``coordinator status`` shows: the store, read with or without a running service, and not changed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import create_engine
from sqlalchemy.exc import DatabaseError

from cipherward.coordinator.daemon.folder import ADDRESS, DATABASE
from cipherward.coordinator.rounds.state import State
from cipherward.coordinator.store.database import Transaction
from cipherward.coordinator.store.studies import RoundFigures
from cipherward.errors import EnvironmentProblem


@dataclass(frozen=True, slots=True)
class StoredStudy:
    """One study as stored."""

    name: str
    state: State
    versions: int
    history: list[RoundFigures]


def read_studies(folder: Path) -> list[StoredStudy]:
    """All studies of the coordinator in ``folder``; raises EnvironmentProblem."""
    path = folder.absolute() / DATABASE
    if not path.exists():
        raise EnvironmentProblem(
            f"{folder} has no {DATABASE}",
            why="no coordinator has run there",
            fix="Check --dir, or start it with `cipherward coordinator run`",
        )
    engine = create_engine(f"sqlite:///file:{path}?mode=ro&uri=true")
    try:
        with engine.connect() as connection:
            t = Transaction.on(connection)
            return [
                StoredStudy(
                    row.study, row.state, len(t.studies.manifests(row.study)), t.studies.history(row.study)
                )
                for row in t.studies.all()
            ]
    except DatabaseError as error:
        raise EnvironmentProblem(
            f"cannot read {path}", why=str(error.orig).lower(), fix="Check the file's owner and its disk"
        ) from error
    finally:
        engine.dispose()


def read_address(folder: Path) -> str:
    """Where the service of that folder listens; empty if it does not run."""
    try:
        return (folder / ADDRESS).read_text().strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise EnvironmentProblem(f"cannot read {folder / ADDRESS}", why=str(error)) from error
