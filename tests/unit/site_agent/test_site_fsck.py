"""``site fsck``: a healthy folder has no problems, each kind of damage is named and nothing else is, and nothing that
lies in a folder gives a traceback."""

import json
import os
import shutil
import sqlite3
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cipherward.cli.site_service import add_to
from cipherward.durable import FolderLock
from cipherward.errors import CipherwardError, EnvironmentProblem
from cipherward.site_agent.fsck import check
from cipherward.site_agent.state.folder import SiteFolder
from cipherward.site_agent.state.tidy import tidy

STUDY = "heart-1"


@pytest.fixture
def folder(world):
    """Of a site that finished a round and committed in the next."""
    agent = world.admit()
    world.to_close(agent, 1)
    agent.release.catch_up(1, 1)
    world.open_round(agent, 2)
    agent.participation.train_and_join(2)
    world.site.ledger.register("ward", ["somebody"])
    _, digest = world.plan(agent, 2)
    agent.upload.upload_and_commit(2, digest)
    world.site.engine.dispose()
    return world.site.folder


@pytest.fixture
def broken(folder, tmp_path):
    """Applies a change to a copy of the folder, and gives what ``check`` says of it."""

    def look(change):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder.root, copy)
        change(SiteFolder(copy))
        return check(copy)

    return look


def flip(path, at=-1):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def sql(statement, rows=1):
    def change(site):
        with sqlite3.connect(site.database) as connection:
            assert connection.execute(statement).rowcount == rows

    return change


def model(site):
    with sqlite3.connect(site.database) as connection:
        [digest] = connection.execute("SELECT model_digest FROM studies").fetchone()
    return site.models / f"{digest.hex()}.f32"


def chunks(site):
    return site.outbox(STUDY, 2) / "attempt-1.chunks"


def update(site):
    return site.outbox(STUDY, 2) / "update.f32"


ROUND_1 = "WHERE study = 'heart-1' AND round = 1"
DAMAGES = {
    "model-flipped": (lambda s: flip(model(s)), "model of heart-1: CW-200 the model file", "is damaged"),
    "model-gone": (lambda s: model(s).unlink(), "model of heart-1: CW-200 cannot read", "no such file"),
    "model-short": (lambda s: os.truncate(model(s), 7), "model of heart-1", "buffer size"),
    "update-flipped": (lambda s: flip(update(s)), "round 2 of heart-1", "update", "is damaged"),
    "update-gone": (lambda s: update(s).unlink(), "round 2 of heart-1", "update.f32", "no such file"),
    "outbox-gone": (lambda s: shutil.rmtree(s.outbox(STUDY, 2)), "round 2 of heart-1", "no such file"),
    "chunks-flipped": (lambda s: flip(chunks(s)), "round 2 of heart-1", "chunks of attempt 1", "damaged"),
    "chunks-short": (lambda s: os.truncate(chunks(s), 9), "round 2 of heart-1", "is incomplete"),
    "event-changed": (
        sql("UPDATE ledger_events SET details = '{}' WHERE sequence = 2"),
        "ledger: CW-300 ledger event 2 (reserve",
        "does not give its recorded hash",
    ),
    "event-not-json": (
        sql("UPDATE ledger_events SET details = '{' WHERE sequence = 2"),
        "ledger: CW-300 ledger event 2",
    ),
    "event-head-changed": (
        sql("UPDATE ledger_events SET head = zeroblob(32) WHERE sequence = 2"),
        "ledger: CW-300 ledger event 2",
        "does not give its recorded hash",
    ),
    "event-link-changed": (
        sql("UPDATE ledger_events SET previous = zeroblob(32) WHERE sequence = 2"),
        "ledger: CW-300 ledger event 2",
        "does not follow",
    ),
    "patients-changed": (
        sql("DELETE FROM ledger_patients WHERE rowid = (SELECT min(rowid) FROM ledger_patients)"),
        "ledger: CW-300 ledger event 1 (register",
        "patients are not those",
    ),
    "patient-key-other": (lambda s: flip(s.patient_key), "patient.key: CW-300 the patient key is not"),
    "patient-key-gone": (lambda s: s.patient_key.unlink(), "patient.key: CW-200 cannot read"),
    "patient-key-short": (lambda s: os.truncate(s.patient_key, 3), "patient.key: CW-310", "3 bytes"),
    "signing-key-other": (
        lambda s: flip(s.root / "signing.key"),
        "keys: CW-320",
        "signing.key does not belong",
    ),
    "sealing-key-gone": (lambda s: (s.root / "sealing.key").unlink(), "keys: CW-200 cannot read"),
    "transcript-changed": (
        sql("UPDATE studies SET transcript = zeroblob(32)"),
        "transcript of heart-1: it is not the hash",
    ),
    "round-transcript-changed": (
        sql(f"UPDATE rounds SET transcript = zeroblob(32) {ROUND_1}"),
        "round 1 of heart-1: CW-300 the transcript",
    ),
    "closing-cut": (
        sql(f"UPDATE rounds SET closing_record = substr(closing_record, 1, 40) {ROUND_1}"),
        "round 1 of heart-1: CW-3",
    ),
    "closing-gone": (
        sql(f"UPDATE rounds SET closing_record = NULL {ROUND_1}"),
        "round 1 of heart-1: CW-310 a record of it is missing",
    ),
    "plan-gone": (
        sql(f"UPDATE rounds SET plan_record = NULL {ROUND_1}"),
        "round 1 of heart-1: CW-310 a record of it is missing",
    ),
    "plan-text": (
        sql(f"UPDATE rounds SET plan_record = 'plan' {ROUND_1}"),
        "round 1 of heart-1: it cannot be read",
    ),
    "newest-event-gone": (  # the chain itself cannot show it
        sql("DELETE FROM ledger_events WHERE sequence = 4"),
        "round 2 of heart-1: CW-300 the ledger is not the one that its commit was signed with, at event 4",
    ),
    "newest-events-gone": (
        sql("DELETE FROM ledger_events WHERE sequence > 2", rows=2),
        "round 2 of heart-1: CW-300 the ledger has no reservation for it",
    ),
    "commit-garbage": (
        sql("UPDATE rounds SET commit_record = x'0a05' WHERE round = 2"),
        "round 2 of heart-1: CW-310",
    ),
    "manifest-garbage": (
        sql("UPDATE manifests SET signed = zeroblob(length(signed))"),
        "manifests of heart-1: CW-3",
    ),
    "manifest-other": (
        sql("UPDATE manifests SET digest = zeroblob(32)"),
        "manifests of heart-1: CW-300 version 1 is another manifest",
    ),
    "database-no-database": (
        lambda s: s.database.write_bytes(bytes(4096)),
        "database: CW-200 cannot check the site's database",
        "not a database",
    ),
    "database-empty": (lambda s: os.truncate(s.database, 0), "database: CW-200 cannot check"),
    "anchor-gone": (lambda s: (s.root / "anchor.pem").unlink(), "anchor.pem"),
}


def test_each_kind_of_damage_is_named_and_nothing_else(broken):
    for name, (change, *said) in DAMAGES.items():
        found = broken(change)
        # Without the anchor the keys cannot be checked either.
        problems = [line for line in found.problems if name != "anchor-gone" or line.startswith("keys")]
        assert len(problems) == 1 and all(part in problems[0] for part in said), (name, found)
        assert "\n" not in problems[0] and found.notes == [], (name, found)


def test_a_healthy_folder_has_no_problems_and_the_check_changes_nothing(folder):
    def content():
        files = [path for path in folder.root.rglob("*") if path.is_file()]
        # SQLite's own two, which a reader needs too; they are empty or as they were.
        return {path: path.read_bytes() for path in files if not path.name.endswith(("-wal", "-shm"))}

    before = content()
    found = check(folder.root)
    assert (found.problems, found.notes) == ([], [])
    assert content() == before


def test_a_database_cut_short_is_named(broken):
    found = broken(lambda site: os.truncate(site.database, site.database.stat().st_size // 2))
    assert found.problems and any("database" in line for line in found.problems), found


def test_what_others_may_read_is_named(broken, tmp_path):
    files = ("tls.key", "signing.key", "sealing.key", "patient.key", "state.db")
    for name in (*files, "shared-keys", "outbox", "models"):

        def change(site, name=name):
            path = site.root / name
            path.chmod(path.stat().st_mode | 0o040)

        [problem] = broken(change).problems
        mode, wanted = ("0640", "600") if name in files else ("0740", "700")
        path = tmp_path / "copy" / name
        assert problem == f"{path}: its mode {mode} lets others read it; run: chmod {wanted} {path}"


def test_files_in_the_private_folders_are_looked_at_too(broken):
    def change(site):
        for path in (update(site), model(site), next(site.shared_keys.glob("*.key"))):
            path.chmod(0o644)

    assert sum("lets others read it" in line for line in broken(change).problems) == 3


def test_what_a_crash_left_is_a_note_and_the_next_start_removes_it(world, folder):
    old = time.time() - 3600
    left = [folder.root / f".patient.key.{'0' * 16}.tmp", folder.models / f".abc.f32.{'0' * 16}.tmp"]
    for path in left:
        path.write_bytes(b"half")
        os.utime(path, (old, old))
    (folder.models / f".new.f32.{'0' * 16}.tmp").write_bytes(b"being written")
    ended = folder.outbox(STUDY, 1)
    ended.mkdir(mode=0o700, parents=True)
    (ended / "update.f32").write_bytes(b"of a round that is over")
    (ended / "update.f32").chmod(0o600)
    stale = folder.models / f"{'ab' * 32}.f32"
    stale.write_bytes(b"of a round before")
    for path in (*left, stale, *folder.models.glob(".*")):
        path.chmod(0o600)
    found = check(folder.root)
    assert found.problems == []
    assert [line.partition(": ")[0] for line in found.notes] == [str(path) for path in [*left, ended]]

    FolderLock(folder.root, "a site agent").release()
    site = world.open_site()
    tidy(folder, site.engine, site.clock)
    site.engine.dispose()
    after = check(folder.root)
    assert (after.problems, after.notes) == ([], [])
    assert not stale.exists() and len(list(folder.models.glob("*.f32"))) == 2  # and the initial one
    assert len(list(folder.models.glob(".new*"))) == 1 and update(folder).exists()


def test_a_database_without_a_schema_is_said_to_be_one(broken):
    """No word of a coordinator: it is a site's."""

    def empty(site):
        for name in ("", "-wal", "-shm"):
            site.database.with_name(site.database.name + name).unlink(missing_ok=True)
        sqlite3.connect(site.database).close()
        site.database.touch(0o600)

    [problem] = [line for line in broken(empty).problems if line.startswith("database: ")]
    assert "it has no schema yet" in problem and "coordinator" not in problem


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_gives_a_traceback(broken, data):
    def change(site):
        content = bytearray(site.database.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(content) - 64))
            content[at : at + 40] = data.draw(st.binary(min_size=40, max_size=40))
        site.database.write_bytes(content)

    try:
        broken(change)
    except CipherwardError as error:
        assert "\n" not in str(error)


def commands():
    import typer

    app = typer.Typer()
    add_to(app)
    return app


def test_the_command_says_it_in_words_and_json(folder, tmp_path):
    runner, root = CliRunner(), str(folder.root)
    healthy = runner.invoke(commands(), ["fsck", "--dir", root])
    assert healthy.exit_code == 0 and healthy.output == "no problems found\n"
    (folder.root / "patient.key").chmod(0o640)
    shown = runner.invoke(commands(), ["fsck", "--dir", root, "--json"])
    assert shown.exit_code == 1
    said = json.loads(shown.output)
    assert said["notes"] == [] and "chmod 600" in said["problems"][0]
    plain = runner.invoke(commands(), ["fsck", "--dir", root])
    assert plain.exit_code == 1 and plain.output == f"{said['problems'][0]}\n"
    elsewhere = runner.invoke(commands(), ["fsck", "--dir", str(tmp_path / "nowhere")])
    assert isinstance(elsewhere.exception, EnvironmentProblem)
    assert "no site agent has run there" in str(elsewhere.exception)
    assert not (tmp_path / "nowhere").exists()
