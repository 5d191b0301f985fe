"""The store when its database is taken, away, restarted, overtaken, or set up so that it would lose something."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit_postgresql import PrivatePostgresql, Proxy, name_of

from cipherward.coordinator.rounds.state import Phase, State
from cipherward.coordinator.store import database as store_module
from cipherward.coordinator.store import owner
from cipherward.coordinator.store.database import MIGRATIONS, Store, Transaction
from cipherward.coordinator.store.studies import StudyRow
from cipherward.database import make_engine, reading
from cipherward.errors import EnvironmentProblem, OutageError, UsageError

STATE = State(1, Phase.OPEN, 0.0, b"m")


def add_study(t: Transaction, name: str) -> None:
    t.studies.create(StudyRow(name, STATE, b"t" * 32, "w"))


def studies(store: Store) -> list[str]:
    with store.transaction() as t:
        return [row.study for row in t.studies.all()]


def eventually(store: Store) -> list[str]:
    """The studies, as soon as the store answers again."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return studies(store)
        except OutageError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.fixture
def pg_url(postgresql: PrivatePostgresql) -> Iterator[str]:
    url = postgresql.new_database()
    yield url
    postgresql.drop(url)


@pytest.fixture
def proxy(postgresql: PrivatePostgresql) -> Iterator[Proxy]:
    made = Proxy(postgresql)
    yield made
    made.close()


# What durability rests on


def test_sqlite_syncs_every_commit_on_every_connection(tmp_path: Path) -> None:
    engine = make_engine(f"sqlite:///{tmp_path}/x.db")
    held = [engine.connect() for _ in range(3)]
    for connection in held:
        raw = connection.connection.cursor()
        values = [
            raw.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]
        assert values == ["wal", 2, 1, 10000]
    for connection in held:
        connection.close()
    engine.dispose()


def test_sqlite_calls_fsync_before_a_commit_returns(tmp_path: Path) -> None:
    """Seen from outside: what the process asks of the kernel."""
    script = (
        "import sys, os; from cipherward.coordinator.store.database import Store; "
        "from cipherward.coordinator.store.studies import StudyRow; "
        "from cipherward.coordinator.rounds.state import Phase, State; "
        "s = Store('sqlite:///' + sys.argv[1]); os.write(1, b'-- begin\\n')\n"
        "for n in 'abc':\n"
        "    with s.transaction() as t: t.studies.create(StudyRow(n, State(1, Phase.OPEN, 0.0, b'm'), b't', 'w'))\n"
        "    os.write(1, b'-- committed\\n')\n"
    )
    if subprocess.run(["which", "strace"], capture_output=True).returncode:
        pytest.skip("no strace")
    trace = tmp_path / "trace"
    subprocess.run(
        ["strace", "-f", "-e", "trace=fsync,fdatasync,write", "-o", trace, sys.executable, "-c", script,
         str(tmp_path / "x.db")],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    commits = trace.read_text().split("-- begin")[1].split("-- committed")[:-1]
    assert len(commits) == 3 and all("sync(" in part for part in commits)


def test_postgresql_syncs_every_commit_whatever_the_server_prefers(
    postgresql: PrivatePostgresql, pg_url: str
) -> None:
    name = name_of(pg_url)
    postgresql.psql(f"ALTER DATABASE {name} SET synchronous_commit = off")
    store = Store(pg_url)
    for _again in range(2):
        with store._engine.connect() as connection:
            shown = [
                connection.exec_driver_sql(f"SHOW {setting}").scalar_one()
                for setting in (
                    "synchronous_commit",
                    "transaction_isolation",
                    "lock_timeout",
                    "client_encoding",
                )
            ]
            assert shown == ["on", "serializable", "10s", "UTF8"]
        store._engine.dispose()  # the next one is new
    store.close()


def test_a_server_that_does_not_sync_is_refused(postgresql: PrivatePostgresql, pg_url: str) -> None:
    try:
        postgresql.set("fsync", "off")
        with pytest.raises(EnvironmentProblem, match="fsync is off"):
            Store(pg_url)
    finally:
        postgresql.set("fsync", "on")
    Store(pg_url).close()


# One process to a database


def test_a_second_process_is_refused(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "WAIT_SECONDS", 0.2)
    store = Store(database_url)
    with pytest.raises(EnvironmentProblem, match="another coordinator uses the database"):
        Store(database_url)
    assert studies(store) == []
    store.close()
    again = Store(database_url)
    assert again.name == store.name and len(store.name) == 32
    again.close()


def test_reading_beside_it_is_allowed_and_cannot_write(database_url: str) -> None:
    with pytest.raises(EnvironmentProblem), reading(database_url, MIGRATIONS, "cannot read"):
        pytest.fail("there is no schema")
    store = Store(database_url)
    with store.transaction() as t:
        add_study(t, "s")
    with reading(database_url, MIGRATIONS, "cannot read") as connection:
        seen = Transaction.on(connection)
        assert [row.study for row in seen.studies.all()] == ["s"]
        with store.transaction() as t:
            add_study(t, "later")
        assert [row.study for row in seen.studies.all()] == ["s"], "one snapshot"
    with (
        pytest.raises(EnvironmentProblem, match=r"read-?only"),
        reading(database_url, MIGRATIONS, "cannot read") as connection,
    ):
        add_study(Transaction.on(connection), "never")
    assert studies(store) == ["later", "s"]
    store.close()


def test_an_overtaken_process_stops(
    postgresql: PrivatePostgresql, pg_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "WAIT_SECONDS", 0.2)
    stopped = []
    first = Store(pg_url)
    first.when_lost(lambda: stopped.append(True))
    postgresql.end_sessions(pg_url)
    second = Store(pg_url)
    with pytest.raises(EnvironmentProblem, match="another coordinator uses the database") as caught:
        studies(first)
    assert not isinstance(caught.value, OutageError) and stopped == [True]
    second.close()
    with pytest.raises(EnvironmentProblem, match="another coordinator"):
        studies(first)
    first.close()


def test_a_process_that_was_overtaken_for_a_while_stops_too(
    postgresql: PrivatePostgresql, pg_url: str
) -> None:
    first = Store(pg_url)
    postgresql.end_sessions(pg_url)
    Store(pg_url).close()  # came and went
    with pytest.raises(EnvironmentProblem, match="it took it when this process had lost its connection"):
        studies(first)
    first.close()


def test_a_server_that_took_over_from_another_stops_the_process(
    postgresql: PrivatePostgresql, pg_url: str
) -> None:
    store = Store(pg_url)
    assert isinstance(store._owner, owner.SessionOwner) and store._owner._timeline == "00000001"
    store._owner._timeline = "00000000"  # as if the first session had been with the server before a failover
    postgresql.end_sessions(pg_url)
    with pytest.raises(EnvironmentProblem, match="another server has taken over"):
        studies(store)
    with pytest.raises(EnvironmentProblem, match="must start again"):
        store.require_own()
    store.close()


@pytest.mark.parametrize("ticket", ["1000000", str(2**40)])
def test_a_server_that_knows_nothing_of_a_commit_stops_the_process(pg_url: str, ticket: str) -> None:
    store, stopped = Store(pg_url), []
    store.when_lost(lambda: stopped.append(True))
    store._unsettled = ticket  # in the future of this server
    for _again in range(2):
        with pytest.raises(EnvironmentProblem, match=r"is in the future|does not know") as caught:
            studies(store)
        assert not isinstance(caught.value, OutageError)
    assert stopped == [True]
    store.close()


# A server that goes away


def test_the_server_may_be_restarted(postgresql: PrivatePostgresql, pg_url: str) -> None:
    store = Store(pg_url)
    with store.transaction() as t:
        add_study(t, "before")
    for mode in ("fast", "immediate"):
        postgresql.restart(mode)
        assert eventually(store) == ["before"]
    postgresql.stop()
    try:
        for _ in range(20):  # of which only one a second asks
            with pytest.raises(OutageError, match="CW-210 the coordinator's database cannot be used"):
                studies(store)
        with pytest.raises(OutageError, match="cannot open the database postgresql"):
            Store(pg_url)
    finally:
        postgresql.start()
    assert eventually(store) == ["before"]
    store.close()


def test_a_session_that_ends_in_a_transaction_leaves_nothing(
    postgresql: PrivatePostgresql, pg_url: str
) -> None:
    store = Store(pg_url)
    with pytest.raises(OutageError), store.transaction() as t:
        add_study(t, "half")
        postgresql.end_sessions(pg_url)
        add_study(t, "other half")
    assert eventually(store) == []
    store.close()


def test_a_lost_commit_is_an_outage_and_a_lost_answer_is_none(pg_url: str, proxy: Proxy) -> None:
    store = Store(proxy.url(pg_url))
    proxy.lose_commit = True
    threading.Timer(0.3, lambda: setattr(proxy, "lose_commit", False)).start()
    with pytest.raises(OutageError), store.transaction() as t:
        add_study(t, "lost on the way")
    assert eventually(store) == []

    proxy.lose_answer = True
    threading.Timer(0.3, lambda: setattr(proxy, "lose_answer", False)).start()
    with store.transaction() as t:
        add_study(t, "kept")
    assert eventually(store) == ["kept"], "the caller was told what is so"
    store.close()


def test_a_commit_of_which_nobody_can_tell_stops_the_process(
    pg_url: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "SETTLE_SECONDS", 0.3)
    monkeypatch.setattr(store_module, "OUTAGE_SECONDS", 0.1)
    store, stopped = Store(proxy.url(pg_url)), []
    store.when_lost(lambda: stopped.append(True))
    for lost in ("lose_commit", "lose_answer"):
        setattr(proxy, lost, True)
        with pytest.raises(OutageError), store.transaction() as t:
            add_study(t, lost.replace("_", "-"))
            proxy.reachable = False  # for new connections
        with pytest.raises(OutageError):
            studies(store)
        setattr(proxy, lost, False)
        proxy.reachable = True
        time.sleep(0.15)
        if lost == "lose_commit":
            assert studies(store) == [], "as its caller was told"
    with pytest.raises(EnvironmentProblem, match="must start again"):
        studies(store)
    assert stopped == [True]
    store.close()
    again = Store(pg_url)
    assert studies(again) == ["lose-answer"]
    again.close()


def test_a_session_that_only_the_server_believes_in_is_ended(pg_url: str, proxy: Proxy) -> None:
    """A router forgets the connection. The server keeps the session, and with it the lock."""
    store = Store(proxy.url(pg_url))
    proxy.cut()
    started = time.monotonic()
    assert eventually(store) == []
    assert time.monotonic() - started < 3
    store.close()


# Wrong URLs and accounts


@pytest.mark.parametrize(
    "url",
    [
        "mysql://admin:geheim@db/x",
        "postgresql+psycopg2://admin:geheim@db/x",
        "postgresql://admin:geheim@db:port/x",
        "nonsense geheim",
        "sqlite://",
    ],
)
def test_urls_that_cannot_be(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        Store(url)
    assert "geheim" not in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.__context__ is None, "nor in what a traceback shows"


def test_a_password_is_never_shown(pg_url: str, postgresql: PrivatePostgresql) -> None:
    for url in (
        pg_url.replace("tester@", "nobody:geheim@"),
        "postgresql+psycopg://u:geheim@127.0.0.1:1/x?connect_timeout=1",
    ):
        with pytest.raises(OutageError) as caught:
            Store(url)
        told = str(caught.value)
        assert "geheim" not in told and "***" in told and "\n" not in told, told


def test_a_missing_driver_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(EnvironmentProblem, match=r"pip install 'cipherward\[postgresql\]'"):
        Store("postgresql://u@h/x")


def test_an_account_that_may_not_make_tables_is_told(postgresql: PrivatePostgresql, pg_url: str) -> None:
    name = name_of(pg_url)
    postgresql.psql("DROP ROLE IF EXISTS reader")
    postgresql.psql("CREATE ROLE reader LOGIN")
    with pytest.raises(EnvironmentProblem, match=r"permission denied for schema public.*account's rights"):
        Store(pg_url.replace("tester@", "reader@"))
    assert postgresql.psql("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", name) == "0"


def test_a_file_that_is_no_database_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"minutes of the meeting " * 100)
    with pytest.raises(EnvironmentProblem, match="file is not a database"):
        Store(f"sqlite:///{tmp_path}/x.db")
