"""``coordinator fsck`` on what a coordinator killed in mid-round left behind: nothing to find, until something is
broken, and then it is named."""

import json
import shutil
import sqlite3
import subprocess
import sys

import pytest

NAMES = ("alpha", "beta", "gamma")


def run_fsck(folder, *options):
    command = [sys.executable, "-m", "cipherward.cli.app", "coordinator", "fsck", "--dir", str(folder)]
    return subprocess.run([*command, *options], capture_output=True, text=True, check=False)


def fsck(folder):
    done = run_fsck(folder, "--json")
    assert done.returncode in (0, 1), done.stderr
    problems = json.loads(done.stdout)["problems"]
    assert bool(problems) == bool(done.returncode)
    return problems


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


def blob_of(folder, wanted):
    with sqlite3.connect(folder / "coordinator.db") as connection:
        found = connection.execute("SELECT chunk_set, blob FROM segments ORDER BY chunk_set").fetchall()
    name, blob = next((name, blob) for name, blob in found if wanted in name)
    return name, folder / "blobs" / blob[:2] / blob


def test_what_is_broken_is_named_and_nothing_else(killed, tmp_path):
    assert fsck(killed) == []

    def broken(change):
        copy = tmp_path / "broken"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(killed, copy)
        expected = change(copy)
        problems = fsck(copy)
        assert len(problems) == 1 and expected in problems[0], (expected, problems)

    def flipped(copy):
        name, path = blob_of(copy, "weights")
        path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
        return f"{name}: chunk 0 is not what was stored"

    def cut(copy):
        name, path = blob_of(copy, "weights")
        path.write_bytes(path.read_bytes()[:-1])
        return f"{name}: chunk 0"

    def gone(copy):
        name, path = blob_of(copy, "weights")
        path.unlink()
        return f"{name}: chunk 0"

    def sql(copy, statement):
        with sqlite3.connect(copy / "coordinator.db") as connection:
            assert connection.execute(statement).rowcount == 1

    def other_transcript(copy):
        sql(copy, "UPDATE studies SET transcript = zeroblob(32)")
        return "transcript of heart-1"

    def no_plan(copy):
        sql(copy, "DELETE FROM records WHERE round = 1 AND kind = 2")
        return "round 1 of heart-1"

    def other_manifest(copy):
        sql(copy, "UPDATE manifests SET signed = zeroblob(length(signed))")
        return "manifests of heart-1"

    def no_state(copy):
        sql(copy, "UPDATE studies SET state = '{'")
        return "studies: it cannot be read"

    for change in (flipped, cut, gone, other_transcript, no_plan, other_manifest, no_state):
        broken(change)


def test_a_folder_where_no_coordinator_ran_is_an_error(make_consortium):
    done = run_fsck(make_consortium("alpha", "beta").folder / "hub")
    assert done.returncode == 3 and "no coordinator has run there" in done.stderr
