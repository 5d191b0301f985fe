"""What goes wrong with the site's database, said so that an admin can act on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DatabaseError

from cipherward.errors import EnvironmentProblem, UnavailableError


@contextmanager
def explained_database(what: str) -> Iterator[None]:
    """Turn a database error into one that says what to do. The transaction it ended left nothing behind.

    Raises UnavailableError where another process holds the database, otherwise EnvironmentProblem.
    """
    try:
        yield
    except DatabaseError as error:
        reason = str(error.orig).strip().lower()
        if "locked" in reason or "busy" in reason:
            raise UnavailableError(
                f"cannot {what}",
                why="another process holds the site's database",
                fix="Try again; only one agent may run for a site",
            ) from error
        if "full" in reason or "i/o" in reason:  # SQLite reports a file size limit as an I/O error
            raise EnvironmentProblem(
                f"cannot {what}",
                why=f"the disk is full or fails ({reason})",
                fix="Free space and start again; nothing acknowledged is lost",
            ) from error
        raise EnvironmentProblem(
            f"cannot {what}",
            why=reason,
            fix="Run `cipherward site fsck`; restore the database if it is damaged",
        ) from error
