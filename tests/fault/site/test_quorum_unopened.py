"""A round of the quorum suite whose close record stands and that nobody could open: too few members were left to
answer. It is over for everybody, its updates are spent, and the study goes on, or ends, with the old model."""

import pytest
from fault_checker import check_study

NAMES = ("alpha", "beta", "delta", "gamma")


@pytest.mark.parametrize(("rounds", "unopened"), [(2, 1), (2, 2)])
def test_a_closed_round_that_too_few_answer_holds_nobody_up(make_consortium, rounds, unopened):
    world = make_consortium(*NAMES)
    world.start_coordinator()
    world.start_study(world.manifest("heart-1", suite="quorum", rounds=rounds, join_window=300, short=6))
    for name in ("alpha", "gamma"):
        world.start_site(name)
    deaths = ["client:post_model_report"] * (unopened - 1) + ["client:post_acknowledgement"]
    for _ in deaths:
        for name in ("beta", "delta"):
            world.start_site(name, CRASH_AFTER=",".join(deaths))
        for name in ("beta", "delta"):
            assert world.processes[name].wait(60) == -9, world.log(name)
    for name in ("beta", "delta"):
        world.start_site(name)  # without its round key: it does not answer
    world.wait(*NAMES)
    states = [world.status(name, "heart-1") for name in NAMES]
    assert {state["state"] for state in states} == {"finished"}
    assert len({state["model_digest"] for state in states}) == 1
    assert len({state["transcript"] for state in states}) == 1
    for state in states:
        assert [entry["contributors"] for entry in state["rounds"]] == [list(NAMES)] * rounds
        finished = [entry["step"] == "finished" for entry in state["rounds"]]
        assert finished == [number != unopened for number in range(1, rounds + 1)]
    assert [each.opened for each in check_study(world, "heart-1")] == finished
