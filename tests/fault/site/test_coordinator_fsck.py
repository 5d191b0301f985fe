"""``coordinator fsck`` on what a coordinator killed in mid-round left behind: no problems, until something is
broken, and then that is named and nothing else."""

import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time

import pytest

from cipherward.coordinator.fsck import Places, check
from cipherward.errors import CipherwardError

NAMES = ("alpha", "beta", "gamma")


def run_fsck(folder, *options):
    command = [sys.executable, "-m", "cipherward.cli.app", "coordinator", "fsck", "--dir", str(folder)]
    return subprocess.run([*command, *options], capture_output=True, text=True, check=False)


@pytest.fixture
def killed(make_consortium):
    """The folder of a coordinator killed when all had committed in round 2."""
    world = make_consortium(*NAMES)
    world.start_coordinator()
    world.start_study(world.manifest("heart-1", suite="quorum", rounds=3))
    for name in NAMES:
        world.start_site(name)
    world.wait_for(
        lambda: all(world.log(name).count('"committed"') == 2 for name in NAMES), "two rounds of commits"
    )
    world.kill("hub")
    for name in NAMES:
        world.kill(name)
    return world.folder / "hub"


def segment(folder, wanted):
    with sqlite3.connect(folder / "coordinator.db") as connection:
        found = connection.execute("SELECT chunk_set, blob FROM segments ORDER BY chunk_set").fetchall()
    name, blob = next((name, blob) for name, blob in found if wanted in name)
    return name, folder / "blobs" / blob[:2] / blob


def at_blob(wanted, change, *said):
    def damage(copy):
        name, path = segment(copy, wanted)
        change(path)
        return [f"{name}: chunk 0", *said]

    return damage


def sql(statement, *said, rows=1):
    def damage(copy):
        with sqlite3.connect(copy / "coordinator.db") as connection:
            assert connection.execute(statement).rowcount == rows, statement
        return list(said)

    return damage


def at_file(name, change, *said):
    def damage(copy):
        change(copy / name)
        return list(said)

    return damage


def flip(path):
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


def cut(path):
    os.truncate(path, path.stat().st_size - 1)


def no_segment(wanted, said):
    def damage(copy):
        name, path = segment(copy, wanted)
        sql(f"DELETE FROM segments WHERE chunk_set = '{name}'")(copy)
        path.unlink()
        return [name, said]

    return damage


def other_leaves(copy):
    """Blob and digests changed together: only the signed root tells."""
    name, path = segment(copy, "heart-1/2/update/alpha")
    other, other_path = segment(copy, "heart-1/2/update/beta")
    shutil.copyfile(other_path, path)
    sql(
        f"UPDATE segments SET leaves = (SELECT leaves FROM segments WHERE chunk_set = '{other}'), "
        f"sizes = (SELECT sizes FROM segments WHERE chunk_set = '{other}') WHERE chunk_set = '{name}'"
    )(copy)
    return [f"{name}: it is not what alpha committed"]


ROUND_1, ROUND_2 = "WHERE round = 1 AND kind =", "WHERE round = 2 AND kind ="
OTHER_DIGEST = "SET digest = zeroblob(32)"
DAMAGES = {
    "blob flipped": at_blob("weights", flip, "is not what was stored"),
    "blob cut": at_blob("weights", cut, "is cut short"),
    "blob gone": at_blob("update", lambda path: path.unlink(), "no such file"),
    "share flipped": lambda copy: [
        at_blob("shares", flip)(copy)[0].rpartition(":")[0],
        "not what was stored",
    ],
    "segment of an update gone": no_segment("heart-1/2/update", "0 of its 2 chunks are on record"),
    "segment of shares gone": no_segment("heart-1/2/shares", "0 of its 3 chunks are on record"),
    "segment of the weights gone": no_segment("weights", "0 of its 92 bytes"),
    "segment with a gap": sql(
        "UPDATE segments SET first = 1 WHERE chunk_set LIKE '%weights%'", "weights", "chunk 0 is missing"
    ),
    "segment with lost digests": sql(
        "UPDATE segments SET leaves = x'00' WHERE chunk_set LIKE '%weights%'", "weights", "another number"
    ),
    "another update in its place": other_leaves,
    "transcript": sql("UPDATE studies SET transcript = zeroblob(32)", "transcript of heart-1: it is not"),
    "round record gone": sql(f"DELETE FROM records {ROUND_1} 1", "round 1 of heart-1: CW-310 the database"),
    "plan record gone": sql(f"DELETE FROM records {ROUND_1} 2", "round 1 of heart-1: CW-310 the database"),
    "plan in use gone": sql(
        f"DELETE FROM records {ROUND_2} 2", "round 2 of heart-1", "lacks the plan record"
    ),
    "close record gone": sql(
        f"DELETE FROM records {ROUND_1} 3", "round 1 of heart-1", "lacks the close record"
    ),
    "record changed": sql(
        f"UPDATE records SET signed = zeroblob(length(signed)) {ROUND_1} 3", "round 1 of heart-1: CW-3"
    ),
    "record's digest changed": sql(
        f"UPDATE records {OTHER_DIGEST} {ROUND_1} 1", "round 1 of heart-1: CW-310 the round record is not"
    ),
    "record of another round": sql(
        f"UPDATE records SET (signed, digest) = (SELECT signed, digest FROM records {ROUND_2} 1) {ROUND_1} 1",
        "round 1 of heart-1: CW-3",
    ),
    "commit gone": sql(
        "DELETE FROM posts WHERE kind = 'commit' AND round = 2 AND site = 'beta'",
        "round 2 of heart-1: CW-310 the database lacks the commit of beta",
    ),
    "commit of another": sql(
        "UPDATE posts SET signed = (SELECT signed FROM posts WHERE kind = 'commit' AND round = 2 AND "
        "site = 'beta') WHERE kind = 'commit' AND round = 2 AND site = 'alpha'",
        "round 2 of heart-1: CW-310 the commit of alpha is another one than was acknowledged",
    ),
    "report changed": sql(
        "UPDATE posts SET signed = x'0a00' WHERE kind = 'report' AND round = 1 AND site = 'alpha'",
        "round 1 of heart-1: CW-3",
    ),
    "manifest changed": sql(
        "UPDATE manifests SET signed = zeroblob(length(signed))", "manifests of heart-1: CW-310"
    ),
    "manifest's digest changed": sql(
        f"UPDATE manifests {OTHER_DIGEST}", "manifests of heart-1: CW-310 version 1"
    ),
    "state not JSON": sql("UPDATE studies SET state = '{'", "state of heart-1: it cannot be read"),
    "state of another kind": sql("UPDATE studies SET state = '[1]'", "state of heart-1: it cannot be read"),
    "signing key readable": at_file("signing.key", lambda p: p.chmod(0o644), "signing.key: its mode 0644"),
    "TLS key readable": at_file("tls.key", lambda p: p.chmod(0o640), "tls.key: its mode 0640"),
    "signing key another": at_file("signing.key", flip, "keys: CW-320", "signing.key does not belong"),
    "TLS key gone": at_file("tls.key", lambda p: p.unlink(), "keys: CW-200 cannot read", "tls.key"),
    "database no database": at_file(
        "coordinator.db", lambda p: p.write_bytes(bytes(8192)), "database: CW-200", "not a database"
    ),
    "database empty": at_file("coordinator.db", lambda p: os.truncate(p, 0), "database: CW-200 cannot check"),
    "blobs gone": at_file("blobs", shutil.rmtree, "blobs: it is missing, and every chunk with it"),
}


@pytest.mark.slow
def test_what_is_broken_is_named_and_nothing_else(killed, tmp_path):
    clean = check(Places(killed))
    assert clean.problems == [], clean
    copy = tmp_path / "broken"

    def afresh():
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(killed, copy)
        for log in ("wal", "shm"):
            if "no database" in name or "empty" in name:
                (copy / f"coordinator.db-{log}").unlink(missing_ok=True)

    for name, damage in DAMAGES.items():
        afresh()
        said = damage(copy)
        problems = check(Places(copy)).problems
        assert len(problems) == 1 and all(part in problems[0] for part in said), (name, said, problems)
        assert "\n" not in problems[0]

    name = "half of the database"
    afresh()
    with sqlite3.connect(copy / "coordinator.db") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    os.truncate(copy / "coordinator.db", (copy / "coordinator.db").stat().st_size // 8192 * 4096)
    assert any("database" in problem for problem in check(Places(copy)).problems)

    name = "stray"
    afresh()
    stray = copy / "blobs" / "ab" / ("ab" + "0" * 30)
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"put, and never recorded")
    half = copy / f".address.{'0' * 16}.tmp"
    half.write_bytes(b"half")
    os.utime(half, (time.time() - 3600,) * 2)
    found = check(Places(copy))
    assert found.problems == []
    new = [note for note in found.notes if note not in clean.notes]
    assert (
        len(new) == 2 and any(stray.name in note for note in new) and any(half.name in note for note in new)
    )

    seeded = random.Random(1)
    for attempt in range(20):
        name = f"bytes of the database overwritten, {attempt}"
        afresh()
        content = bytearray((copy / "coordinator.db").read_bytes())
        for _ in range(3):
            place = seeded.randrange(len(content) - 64)
            content[place : place + 40] = seeded.randbytes(40)
        (copy / "coordinator.db").write_bytes(content)
        try:
            check(Places(copy))
        except CipherwardError as error:
            assert "\n" not in str(error)

    name = "by the command"
    afresh()
    healthy = run_fsck(copy)
    assert (healthy.returncode, healthy.stdout.splitlines()[-1:]) == (0, ["no problems found"]), healthy
    [*_, expected] = DAMAGES["blob flipped"](copy)
    told = run_fsck(copy, "--json")
    assert told.returncode == 1 and expected in json.loads(told.stdout)["problems"][0], told
    moved = run_fsck(
        killed,
        "--database",
        f"sqlite:///{copy}/coordinator.db",
        "--blobs",
        f"file://{copy}/blobs",
    )
    assert moved.returncode == 1 and expected in moved.stdout


def test_a_folder_where_no_coordinator_ran_is_an_error(make_consortium):
    done = run_fsck(make_consortium("alpha", "beta").folder / "hub")
    assert done.returncode == 3 and "no coordinator has run there" in done.stderr
