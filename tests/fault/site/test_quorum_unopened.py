"""A round of the quorum suite whose close record stands and of which no model came: too few members were left to
answer, or to say that they have one. It is over for everybody, its updates are spent, and the study goes on, or ends,
with the model before."""

import pytest
from fault_checker import check_study

from cipherward.proto.v1.coordinator_pb2 import StudyState

NAMES = ("alpha", "beta", "delta", "gamma")


@pytest.mark.parametrize(("rounds", "unopened"), [(2, 1), (2, 2)])
@pytest.mark.slow
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


@pytest.mark.parametrize(("rounds", "given_up"), [(2, 1), pytest.param(2, 2, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_site_that_alone_opened_a_round_goes_back_with_the_others(make_consortium, rounds, given_up):
    world = make_consortium(*NAMES)
    world.start_coordinator()
    manifest = world.manifest(
        "heart-1", suite="quorum", rounds=rounds, join_window=300, verify=3, collective_verification=False
    )
    world.start_study(manifest)
    alone, *others = NAMES
    world.start_site(alone)
    deaths = ["client:post_model_report"] * (given_up - 1) + ["client:post_answer"]
    for _ in deaths:
        for name in others:
            world.start_site(name, CRASH_AFTER=",".join(deaths))
        for name in others:
            assert world.processes[name].wait(60) == -9, world.log(name)
    finished = f'"round": {given_up}, "contributors": {len(NAMES)}'
    world.wait_for(lambda: finished in world.log(alone), "the round, for one site")
    world.wait_for(lambda: world.study("heart-1").round > given_up or ended(world), "the end of the round")
    for name in others:
        world.start_site(name)
    world.wait(*NAMES)
    assert "back to the model before" in world.log(alone)
    rounds = check_study(world, "heart-1")
    assert [each.opened for each in rounds] == [each.number != given_up for each in rounds]


def ended(world):
    return world.study("heart-1").state != StudyState.STUDY_STATE_RUNNING


@pytest.mark.slow
def test_a_new_site_gets_the_model_before_a_round_that_nobody_opened(make_consortium):
    world = make_consortium(*NAMES)
    world.start_coordinator()
    world.start_study(world.manifest("heart-1", suite="quorum", rounds=3, join_window=6, short=4))
    *first, late = NAMES
    deaths = "client:post_model_report,client:post_acknowledgement"
    for name in first[1:]:
        world.start_site(name)
    for _ in range(2):
        assert world.start_site(first[0], CRASH_AFTER=deaths).wait(60) == -9, world.log(first[0])
    world.wait_for(lambda: '"round": 3' in world.log(first[1]), "round 3")
    world.start_site(first[0])
    world.start_site(late)
    world.wait(*NAMES)
    assert "took over the model from a peer" in world.log(late)
    rounds = check_study(world, "heart-1")
    assert [each.opened for each in rounds] == [True, False, True]
    assert late in rounds[-1].contributors
