"""Opening a database the one way both daemons do it: durable, with foreign keys, at the newest schema."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from cipherward.errors import EnvironmentProblem, OutageError, UsageError

_DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
_OLDEST_POSTGRESQL = 130000  # pg_xact_status of a full transaction id
# A server that is gone is noticed in half a minute, however it went. What the URL says goes first.
_CLIENT_SIDE = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25000,
    "client_encoding": "utf8",
    "application_name": "cipherward",
}
# A client that is gone is noticed as fast: its locks must not stay for the two hours that are the default.
_SERVER_SIDE = {
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "lock_timeout": "10s",
}


def parse_url(url: str) -> URL:
    """An SQLAlchemy URL of a database that is supported; UsageError for others. Passwords are not repeated."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        parsed = None
    if parsed is None or parsed.drivername not in _DRIVERS or parsed.database in (None, "", ":memory:"):
        raise UsageError(
            "the database URL names no database that is supported",
            why="it must be sqlite:///PATH or postgresql+psycopg://USER@HOST/NAME",
            fix="Correct --database",
        )
    return parsed.set(drivername=_DRIVERS[parsed.drivername])


def file_url(path: Path) -> str:
    """The URL of an SQLite file, whatever characters are in its path."""
    return f"sqlite:///{quote(str(path.absolute()), safe='/ ')}"


def shown(url: URL) -> str:
    """The URL without its password, for people and logs."""
    return url.render_as_string(hide_password=True)


def explained(error: DBAPIError, what: str) -> EnvironmentProblem:
    """What people can do about a database's error: OutageError where the next try may work."""
    reason = " ".join(str(error.orig).split())[:300]
    reason = reason[:1].lower() + reason[1:]
    state = getattr(error.orig, "sqlstate", "")  # psycopg: None where the server could not say it
    if "full" in reason or "i/o" in reason or state == "53100":  # SQLite calls a file size limit an I/O error
        return EnvironmentProblem(
            what, why=reason, fix="Free space on its disk; nothing acknowledged is lost"
        )
    away = error.connection_invalidated or state is None or state[:2] in ("08", "40", "53", "57")
    if away or state in ("25006", "55P03") or "locked" in reason:
        return OutageError(
            what,
            why=reason,
            fix="Check the database, its account and the network. It is tried again by itself",
        )
    return EnvironmentProblem(
        what,
        why=reason,
        fix="Check its disk and the account's rights there; restore it from a backup if it is damaged",
    )


def _sqlite_session(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    # WAL with FULL: a committed transaction is on disk before the commit returns.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_with(engine: Engine, statement: str) -> None:
    """Begin SQLite transactions so, in place of the driver's own way: it begins only where something is written."""

    def connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None

    def begun(connection: Connection) -> None:
        connection.exec_driver_sql(statement)

    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", begun)


def _postgresql_session(connection: Any, _record: Any) -> None:
    try:
        # An asynchronous commit is acknowledged before it is on disk: never for us, whatever the server's default.
        wanted = ", ".join(f"set_config('{name}', '{value}', false)" for name, value in _SERVER_SIDE.items())
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT {wanted}")
            cursor.execute(
                "SELECT set_config('synchronous_commit', 'on', false) "
                "WHERE current_setting('synchronous_commit') = 'off'"
            )
            cursor.execute("SELECT current_setting('fsync'), current_setting('server_version_num')::int")
            fsync, version = cursor.fetchone()
        connection.commit()
        if version < _OLDEST_POSTGRESQL:
            raise EnvironmentProblem(
                "the database server is too old",
                why=f"its version is {version // 10000}, PostgreSQL 13 is the oldest that works",
            )
        if fsync != "on":
            raise EnvironmentProblem(
                "will not use the database server",
                why="its setting fsync is off: a power cut would take back what was acknowledged",
                fix="Set fsync = on in postgresql.conf, and reload it",
            )
    except BaseException:
        connection.close()
        raise


def _new_engine(url: URL, **options: Any) -> Engine:
    try:
        # Parameters stay out of errors: they are signed records, and belong in no log.
        return create_engine(url, hide_parameters=True, **options)
    except ImportError as error:
        raise EnvironmentProblem(
            f"cannot open the database {shown(url)}",
            why="psycopg, the driver for PostgreSQL, is not installed here",
            fix="Install the extra: pip install 'cipherward[postgresql]'",
        ) from error


def _client_side(url: URL) -> dict[str, Any]:
    return {name: value for name, value in _CLIENT_SIDE.items() if name not in url.query}


def make_engine(url: str) -> Engine:
    """An engine for ``sqlite:///PATH`` or ``postgresql+psycopg://...``; UsageError or EnvironmentProblem.

    Transactions are serialisable. SQLite's begin IMMEDIATE, so that read-then-write never fails half way;
    PostgreSQL's all run on one connection (``coordinator.store.owner``).
    """
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite":
        engine = _new_engine(parsed)
        event.listen(engine, "connect", _sqlite_session)
        _begin_with(engine, "BEGIN IMMEDIATE")
    else:
        engine = _new_engine(
            parsed,
            isolation_level="SERIALIZABLE",
            pool_size=1,
            max_overflow=0,
            pool_pre_ping=True,
            connect_args=_client_side(parsed),
        )
        event.listen(engine, "connect", _postgresql_session)
    return engine


def _scripts(migrations: Path) -> tuple[Config, ScriptDirectory]:
    config = Config()
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    return config, ScriptDirectory.from_config(config)


def _revision(connection: Connection, scripts: ScriptDirectory) -> str | None:
    """The database's schema; EnvironmentProblem if this version does not know it."""
    current = MigrationContext.configure(connection).get_current_revision()
    if current is not None and current not in {script.revision for script in scripts.walk_revisions()}:
        raise EnvironmentProblem(
            f"the database {shown(connection.engine.url)} was written by a newer version of Cipherward",
            why=f"its schema is {current[:40]}, and the newest that this version knows is {scripts.get_current_head()}",
            fix="Install the newer version again, or restore the backup made before the upgrade",
        )
    return current


def migrate(engine: Engine, migrations: Path) -> None:
    """Upgrade to the newest revision in ``migrations`` (an Alembic script folder), all in one transaction.

    Raises EnvironmentProblem if the database cannot be opened or is of a newer version; it is then as it was.
    """
    config, scripts = _scripts(migrations)
    try:
        with engine.begin() as connection:
            _revision(connection, scripts)
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except DBAPIError as error:
        raise explained(error, f"cannot open the database {shown(engine.url)}") from error


def open_database(url: str, migrations: Path) -> Engine:
    """An engine on a database upgraded to the newest revision in ``migrations``; raises as ``migrate``."""
    engine = make_engine(url)
    try:
        migrate(engine, migrations)
    except BaseException:
        engine.dispose()
        raise
    return engine


@contextmanager
def reading(url: str, migrations: Path, what: str) -> Iterator[Connection]:
    """One consistent snapshot that cannot be written to, beside whoever uses the database.

    Raises EnvironmentProblem (``what`` it is that failed), also if the schema is not this version's.
    """
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite":
        place = f"file:{quote(str(Path(parsed.database or '').absolute()))}"
        engine = _new_engine(
            parsed.set(database=place).update_query_dict({"mode": "ro", "uri": "true"}), poolclass=NullPool
        )
        _begin_with(engine, "BEGIN")
    else:
        engine = _new_engine(parsed, poolclass=NullPool, connect_args=_client_side(parsed)).execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )
    scripts = _scripts(migrations)[1]
    try:
        with engine.connect() as connection:
            if (found := _revision(connection, scripts)) != scripts.get_current_head():
                raise EnvironmentProblem(
                    what,
                    why="it has no schema yet" if found is None else "its schema is of an older version",
                    fix="Start the service once: it makes the schema, and brings it up to date",
                )
            yield connection
    except DBAPIError as error:
        raise explained(error, what) from error
    finally:
        engine.dispose()


def database_problems(connection: Connection) -> Iterator[str]:
    """What SQLite's own checks find, a line each; nothing for other databases, which check themselves."""
    if connection.dialect.name != "sqlite":
        return
    for pragma in ("integrity_check", "foreign_key_check"):
        for row in connection.execute(text(f"PRAGMA {pragma}")):
            if row[0] != "ok":
                yield f"database: {pragma.replace('_', ' ')} says {row[0]}"
