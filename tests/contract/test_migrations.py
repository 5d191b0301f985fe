"""Databases of every old version, with data in every table, come up to this version and lose nothing.

A revision that is added needs no new test: rows are made up from the schema that each old revision has.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, MetaData, Table, event, inspect, select, text

from cipherward.coordinator.store import database as coordinator_database
from cipherward.coordinator.store.database import Store, Transaction
from cipherward.coordinator.store.schema import metadata as coordinator_metadata
from cipherward.database import make_engine, migrate, open_database
from cipherward.errors import EnvironmentProblem
from cipherward.site_agent.ledger import tables as ledger_tables
from cipherward.site_agent.state import tables as state_tables
from cipherward.site_agent.state.folder import MIGRATIONS as SITE
from cipherward.site_agent.state.metadata import metadata as site_metadata

COORDINATOR = coordinator_database.MIGRATIONS
ROWS = 3
# As written by the first version with migrations. Later code must read it.
STATE_OF_0001 = (
    '{"round":2,"phase":"upload","since":4.5,"model":"0101","model_round":1,"life":"running","reason":"",'
    '"keys":[[1,"a"]],"revoked":[],"joins":{"a":["72","6b"]},"plan":["a"],"commits":{"a":[3,"63"]},'
    '"acknowledgements":{},"enough_since":null,"contributors":[],"answers":{},"reports":{}}'
)


assert ledger_tables.metadata is state_tables.metadata is site_metadata  # all of a site's tables are declared


def config_of(migrations: Path) -> Config:
    config = Config()
    config.set_main_option("script_location", str(migrations))
    return config


def revisions(migrations: Path) -> list[str]:
    """Oldest first."""
    scripts = ScriptDirectory.from_config(config_of(migrations)).walk_revisions()
    return [script.revision for script in scripts][::-1]


def upgrade(engine: Engine, migrations: Path, revision: str) -> None:
    config = config_of(migrations)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def reflected(connection: Connection) -> dict[str, Table]:
    found = MetaData()
    found.reflect(connection)
    return {table.name: table for table in found.sorted_tables if table.name != "alembic_version"}


def made_up(column: Any, row: int) -> Any:
    """A value of the column's type. Rows of all tables agree in their keys, so that references hold."""
    kind = column.type.python_type
    if kind is str:
        return f"{column.name}-{row}"[: column.type.length or 200]
    if kind is bytes:
        return bytes([row, 0, 255]) * (4 if column.type.length is None else column.type.length // 3) + b"\0\1"
    if kind is bool:
        return row % 2 == 0
    if kind is datetime.datetime:
        return datetime.datetime(2026, 1, row, tzinfo=datetime.UTC)
    return kind(row * 7)


def filled(connection: Connection) -> dict[str, list[tuple[Any, ...]]]:
    """Rows in every table; what they are, by table."""
    stored = {}
    for name, table in reflected(connection).items():
        if connection.execute(select(table)).first() is None:
            for row in range(1, ROWS + 1):
                connection.execute(table.insert().values({c.name: made_up(c, row) for c in table.columns}))
        stored[name] = rows_of(connection, table, list(table.columns.keys()))
    return stored


def rows_of(connection: Connection, table: Table, columns: list[str]) -> list[tuple[Any, ...]]:
    return sorted(
        (tuple(row) for row in connection.execute(select(*(table.c[c] for c in columns)))), key=repr
    )


CASES = [
    ("coordinator", "sqlite"),
    ("coordinator", "postgresql"),
    ("site", "sqlite"),
]


@pytest.fixture(params=CASES, ids="-".join)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Engine, Path, MetaData]]:
    """An empty database of each kind for each daemon."""
    daemon, kind = request.param
    url = f"sqlite:///{tmp_path}/x.db"
    if kind == "postgresql":
        url = request.getfixturevalue("postgresql").new_database()
    engine = make_engine(url)
    yield engine, *((COORDINATOR, coordinator_metadata) if daemon == "coordinator" else (SITE, site_metadata))
    engine.dispose()


def test_data_of_every_old_version_is_there_after_the_upgrade(
    database: tuple[Engine, Path, MetaData],
) -> None:
    engine, migrations, metadata = database
    stored: dict[str, list[tuple[Any, ...]]] = {}
    columns: dict[str, list[str]] = {}
    for revision in revisions(migrations):
        upgrade(engine, migrations, revision)
        with engine.begin() as connection:
            tables = reflected(connection)
            for name, rows in stored.items():
                assert rows_of(connection, tables[name], columns[name]) == rows, (revision, name)
            stored = filled(connection)
            columns = {name: list(table.columns.keys()) for name, table in reflected(connection).items()}
            assert all(len(rows) in (1, ROWS) for rows in stored.values())
    migrate(engine, migrations)  # nothing to do
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        assert set(stored) == set(metadata.tables) >= {"studies"}
        if engine.dialect.name == "sqlite":
            assert not connection.exec_driver_sql("PRAGMA foreign_key_check").all()


def test_an_interrupted_upgrade_leaves_the_old_version_usable(
    database: tuple[Engine, Path, MetaData],
) -> None:
    """The machine goes down after the last statement of the upgrade, before its commit."""
    engine, migrations, _ = database
    first, *later = revisions(migrations)
    upgrade(engine, migrations, first)
    with engine.begin() as connection:
        stored = filled(connection)
        before = {name: list(table.columns.keys()) for name, table in reflected(connection).items()}

    def interrupt(connection: Connection) -> None:
        raise KeyboardInterrupt

    event.listen(engine, "commit", interrupt)
    with pytest.raises(KeyboardInterrupt):
        migrate(engine, migrations)
    event.remove(engine, "commit", interrupt)
    engine.dispose()
    with engine.connect() as connection:
        assert MigrationContext.configure(connection).get_current_revision() == first
        tables = reflected(connection)
        assert {name: list(table.columns.keys()) for name, table in tables.items()} == before
        assert all(rows_of(connection, tables[name], before[name]) == rows for name, rows in stored.items())
    migrate(engine, migrations)
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
        assert later and current == later[-1]
        tables = reflected(connection)
        assert all(rows_of(connection, tables[name], before[name]) == rows for name, rows in stored.items())


def test_a_database_of_a_newer_version_is_refused(database: tuple[Engine, Path, MetaData]) -> None:
    engine, migrations, _ = database
    migrate(engine, migrations)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        tables = set(inspect(connection).get_table_names())
    with pytest.raises(EnvironmentProblem, match="written by a newer version") as caught:
        open_database(engine.url.render_as_string(hide_password=False), migrations)
    assert "9999" in str(caught.value) and "\n" not in str(caught.value)
    with engine.connect() as connection:
        assert set(inspect(connection).get_table_names()) == tables


def test_a_coordinator_works_on_a_database_of_the_first_version(database_url: str) -> None:
    """The rows mean what they meant: read by the code and not as columns."""
    engine = make_engine(database_url)
    upgrade(engine, COORDINATOR, "0001")
    with engine.begin() as connection:
        connection.execute(
            text("INSERT INTO studies (study, state, transcript, weights) VALUES ('s', :state, :t, 'w')"),
            {"state": STATE_OF_0001, "t": b"t" * 32},
        )
        connection.execute(
            text("INSERT INTO posts (study, round, kind, site, signed) VALUES ('s', 1, 'commit', 'a', :raw)"),
            {"raw": b"\x0a\x03abc"},
        )
    engine.dispose()
    store = Store(database_url)
    with store.transaction() as t:
        assert isinstance(t, Transaction)
        (row,) = t.studies.all()
        assert (row.study, row.state.round, row.transcript) == ("s", 2, b"t" * 32)
        assert row.state.commits["a"].attempt == 3 and row.state.keys == {(1, "a")}
        assert t.studies.post("s", 1, "commit", "a") is not None
    store.close()
