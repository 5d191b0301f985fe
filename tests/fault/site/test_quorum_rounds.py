"""Rounds of the quorum suite between real processes, and what deaths do to them: with t or more sites alive the exact
sum over U comes out, and a site that restarts never answers with what it no longer has."""

import sqlite3

import pytest
from fault_checker import check_study

NAMES = ("alpha", "beta", "delta", "gamma")


def agreed(world, names=NAMES):
    states = [world.status(name, "heart-1") for name in names]
    assert {state["state"] for state in states} == {"finished"}
    assert len({state["model_digest"] for state in states}) == 1
    assert len({state["transcript"] for state in states}) == 1
    return states


def test_four_sites_agree_and_nothing_of_a_key_is_on_disk(make_consortium):
    world = make_consortium(*NAMES)
    world.start_coordinator()
    world.start_study(world.manifest("heart-1", suite="quorum", rounds=2))
    for name in NAMES:
        world.start_site(name)
    world.wait(*NAMES)
    check_study(world, "heart-1", min_opened=2)
    for state in agreed(world):
        assert [entry["step"] for entry in state["rounds"]] == ["finished"] * 2
        assert all(entry["contributors"] == list(NAMES) for entry in state["rounds"])
    for name in NAMES:
        assert not list((world.folder / name / "shared-keys").iterdir())
        assert not list((world.folder / name / "outbox" / "heart-1").glob("*/*"))
        log = world.log(name)
        assert log.count('"answered"') == log.count('"acknowledged"') == 2


@pytest.mark.slow
def test_a_site_killed_after_its_commit_counts_and_the_others_open_the_sum(make_consortium):
    world = make_consortium(*NAMES)
    world.start_coordinator()
    world.start_study(world.manifest("heart-1", suite="quorum", rounds=3, join_window=20))
    for name in NAMES:
        if name != "beta":
            world.start_site(name)
    assert world.start_site("beta", CRASH_AFTER="client:post_commit").wait(60) == -9, world.log("beta")
    world.wait_for(lambda: "round finished" in world.log("alpha"), "round 1 without beta's answer")
    assert "answered" not in world.log("beta")
    world.start_site("beta")
    world.wait(*NAMES)
    states = agreed(world)
    # Its update is in the sum of round 1, which it never opened: it has the model from a peer.
    for state in states:
        assert state["rounds"][0]["contributors"] == list(NAMES)
    assert "took over the model from a peer" in world.log("beta")
    check_study(world, "heart-1", min_opened=3)


@pytest.mark.slow
def test_with_fewer_than_t_alive_the_round_aborts_and_the_next_one_works(make_consortium):
    world = make_consortium(*NAMES)
    world.start_coordinator(CRASH_AT="sign:ABORT_RECORD")
    world.start_study(world.manifest("heart-1", suite="quorum", rounds=3, join_window=300, short=6))
    for name in ("alpha", "gamma"):
        world.start_site(name)
    for name in ("beta", "delta"):
        world.start_site(name, CRASH_AFTER="client:post_commit")
    for name in ("beta", "delta"):
        assert world.processes[name].wait(60) == -9, world.log(name)
    world.wait_for(lambda: "round aborted" in world.log("alpha"), "the abort")
    for name in ("beta", "delta"):
        world.start_site(name)
    world.wait(*NAMES)
    states = agreed(world)
    for state in states:
        steps = [entry["step"] for entry in state["rounds"]]
        assert steps == ["aborted", "finished", "finished"], steps
    with sqlite3.connect(world.folder / "beta" / "state.db") as connection:
        rows = connection.execute("SELECT round, update_digest FROM rounds ORDER BY round").fetchall()
    # The update of the aborted round is spent: every round trained its own.
    assert len({digest for _, digest in rows}) == 3
    assert (world.folder / "hub" / "crashes.txt").read_text().split() == ["sign:ABORT_RECORD"]
    assert [each.opened for each in check_study(world, "heart-1")] == [False, True, True]
