"""Whole rounds between real processes, and what a restart, an absence or a refusal does to them."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from fault_checker import check_study

NAMES = ("alpha", "beta", "gamma")


def assert_agreed(world, study, rounds, names=NAMES):
    states = [world.status(name, study) for name in names]
    assert {state["state"] for state in states} == {"finished"}
    assert len({state["model_digest"] for state in states}) == 1
    assert len({state["transcript"] for state in states}) == 1
    for state in states:
        assert [entry["step"] for entry in state["rounds"]] == ["finished"] * rounds
        assert all(entry["contributors"] == list(names) for entry in state["rounds"])
    return states


def test_three_sites_agree_on_the_model_of_every_round(make_consortium):
    world = make_consortium(*NAMES)
    world.start_coordinator()
    world.start_study(world.manifest("heart-1", rounds=2, minimum=3))
    for name in NAMES:
        world.start_site(name)
    world.wait(*NAMES)
    check_study(world, "heart-1", min_opened=2)
    for state in assert_agreed(world, "heart-1", 2):
        assert [item["round"] for item in state["evaluations"]] == [0, 1, 2]
        assert not state["findings"] and not state["reason"]
    for name in NAMES:
        outbox = world.folder / name / "outbox" / "heart-1"
        assert not list(outbox.glob("*/*")), "updates are removed when their round is over"
        [key] = (world.folder / name / "shared-keys").iterdir()
        assert key.stat().st_mode & 0o777 == 0o600
    events = [json.loads(line)["event"] for line in world.log("alpha").splitlines()]
    assert events.count("sealed the shared key") == len(NAMES)
    assert events.index("reserved") < events.index("training") < events.index("joined")


def ledger_kinds(world, name):
    import sqlite3

    with sqlite3.connect(world.folder / name / "state.db") as connection:
        return [row[0] for row in connection.execute("SELECT kind FROM ledger_events ORDER BY sequence")]


@pytest.mark.slow
def test_a_folder_restored_from_before_a_whole_study_stops_the_agent(make_consortium):
    world = make_consortium("alpha", "beta")
    shutil.copytree(world.folder / "alpha", world.folder / "backup")
    world.start_coordinator()
    world.start_study(world.manifest("heart-1", rounds=1))
    for name in world.names:
        world.start_site(name)
    world.wait(*world.names)
    assert "reserve" in ledger_kinds(world, "alpha")
    shutil.rmtree(world.folder / "alpha")
    shutil.copytree(world.folder / "backup", world.folder / "alpha")
    assert world.start_site("alpha").wait(60) != 0, world.log("alpha")
    assert "CW-330" in world.log("alpha")
    assert "reserve" not in ledger_kinds(world, "alpha")


@pytest.mark.slow
def test_a_site_that_was_away_takes_the_model_over_from_a_peer(make_consortium):
    world = make_consortium(*NAMES)
    world.start_coordinator()
    world.start_study(world.manifest("heart-1", rounds=3, minimum=2, join_window=15))
    for name in NAMES:
        world.start_site(name)
    world.wait_for(lambda: "round finished" in world.log("gamma"), "round 1")
    world.kill("gamma")
    world.wait_for(lambda: world.log("alpha").count('"round finished"') >= 2, "round 2 without gamma")
    world.start_site("gamma")
    world.wait(*NAMES)
    states = [world.status(name, "heart-1") for name in NAMES]
    assert len({state["model_digest"] for state in states}) == 1
    assert len({state["transcript"] for state in states}) == 1
    assert "took over the model from a peer" in world.log("gamma")
    check_study(world, "heart-1", min_opened=3)


def test_a_refused_study_is_explained_and_the_daemon_goes_on(make_consortium):
    world = make_consortium("alpha", "beta")
    world.policy("beta", 1, ceiling=0.01)
    world.start_coordinator()
    world.start_study(world.manifest("heart-1", rounds=1))
    world.start_site("beta", once=False)
    world.wait_for(lambda: "study refused" in world.log("beta"), "the refusal")
    status = world.status("beta", "heart-1")
    assert status["state"] == "refused" and "0.01" in status["reason"]
    assert [finding["code"] for finding in status["findings"]] == ["budget-study"]
    assert world.processes["beta"].poll() is None


def descendants(pid):
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except (OSError, IndexError):
            continue
        if int(fields[1]) == pid:
            child = int(path.parent.name)
            found += [child, *descendants(child)]
    return found


@pytest.mark.slow
def test_an_idle_agent_is_small_and_stops_cleanly_with_its_children(make_consortium):
    world = make_consortium("alpha", "beta")
    world.start_coordinator()
    world.start_study(world.manifest("heart-1", rounds=1))
    process = world.start_site("alpha", own_trainer=True, once=False)
    world.wait_for(lambda: "joined" in world.log("alpha"), "the join")
    status = Path(f"/proc/{process.pid}/status").read_text()
    resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    assert resident <= 150 * 1024, f"{resident} kB"
    children = descendants(process.pid)
    assert children
    began = time.monotonic()
    process.terminate()
    assert process.wait(15) == 0, world.log("alpha")
    assert time.monotonic() - began < 15
    for child in children:
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            continue
        raise AssertionError(f"child {child} outlived the agent")
