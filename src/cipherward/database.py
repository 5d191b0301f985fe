"""Opening a database the one way both daemons do it: durable, with foreign keys, at the newest schema."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError

from cipherward.errors import EnvironmentProblem


def _sqlite_pragmas(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    # WAL with FULL: a committed transaction is on disk before the commit returns.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def make_engine(url: str) -> Engine:
    """An engine for ``sqlite:///PATH`` or ``postgresql+psycopg://...``.

    SQLite transactions begin IMMEDIATE, so that read-then-write is atomic and never fails half way.
    """
    engine = create_engine(url)
    if make_url(url).get_backend_name() == "sqlite":
        event.listen(engine, "connect", _sqlite_pragmas)

        @event.listens_for(engine, "connect")
        def _no_implicit_begin(connection: Any, _record: Any) -> None:
            connection.isolation_level = None

        @event.listens_for(engine, "begin")
        def _begin_immediate(connection: Any) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def open_database(url: str, migrations: Path) -> Engine:
    """An engine on a database upgraded to the newest revision in ``migrations`` (an Alembic script folder).

    Raises EnvironmentProblem if it cannot be opened.
    """
    engine = make_engine(url)
    config = Config()
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    try:
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except OperationalError as error:
        engine.dispose()
        raise EnvironmentProblem(
            f"cannot open the database {make_url(url).render_as_string(hide_password=True)}",
            why=str(error.orig).strip().lower(),
            fix="Check that its folder exists, is writable and has free space",
        ) from error
    return engine


def database_problems(connection: Connection) -> Iterator[str]:
    """What SQLite's own checks find, a line each; nothing for other databases, which check themselves."""
    if connection.dialect.name != "sqlite":
        return
    for pragma in ("integrity_check", "foreign_key_check"):
        for row in connection.execute(text(f"PRAGMA {pragma}")):
            if row[0] != "ok":
                yield f"database: {pragma.replace('_', ' ')} says {row[0]}"
