"""SIGTERM and Ctrl-C at any step of a round: the agent ends within 15 seconds, and goes on where it was."""

import signal
import time

import pytest
from fault_checker import check_study

NAMES = ("alpha", "beta", "delta", "gamma")
STEPS = (
    "journal:round_record",
    "journal:started",
    "outbox:put_update",
    "calls:put_join",
    "client:post_join",
    "calls:accept_plan",
    "outbox:put_chunks",
    "client:upload",
    "client:post_commit",
    "client:post_acknowledgement",
    "journal:answered_close",
    "client:post_answer",
    "client:post_sum_check",
    "journal:model_digest",
    "client:post_model_report",
)


@pytest.mark.slow
def test_a_site_stopped_at_every_step_of_a_round(make_consortium):
    world = make_consortium(*NAMES)
    world.start_coordinator()
    # A site that is stopped in a round's last steps may find it over: on a slow machine that takes a round each.
    world.start_study(world.manifest("heart-1", suite="quorum", rounds=16, join_window=300, upload=300))
    for name in NAMES:
        if name != "beta":
            world.start_site(name)
    stopped = world.folder / "beta" / "crashes.txt"
    for index, _ in enumerate(STEPS):
        number = (signal.SIGTERM, signal.SIGINT)[index % 2]
        process = world.start_site("beta", CRASH_AFTER=",".join(STEPS), SIGNAL=str(int(number)))
        world.wait_for(lambda: stopped.exists() and len(stopped.read_text().split()) > index, STEPS[index])  # noqa: B023
        began = time.monotonic()
        assert process.wait(15) == 0, world.log("beta")
        assert time.monotonic() - began < 15
    assert stopped.read_text().split() == list(STEPS)
    world.start_site("beta")
    world.wait(*NAMES)
    check_study(world, "heart-1", min_opened=8)


def test_folders_with_spaces_in_their_names(make_consortium, tmp_path):
    world = make_consortium("alpha", "beta", folder="a hospital's own folder, #1")
    world.start_coordinator()
    world.start_study(world.manifest("heart-1", suite="quorum", rounds=1))
    for name in world.names:
        world.start_site(name, own_trainer=name == "alpha")
    world.wait(*world.names)
    check_study(world, "heart-1")
