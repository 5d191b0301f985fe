"""Links that are cut, fall silent, or are slow, between a real coordinator and real site agents."""

import itertools
import json
import time

import pytest
from fault_checker import check_study
from fault_task import NAME, installed_task

from cipherward.coordinator.blobs.writer import SEGMENT_BYTES
from cipherward.crypto.suites.registry import suite
from cipherward.site_agent.client.coordinator import CoordinatorClient
from cipherward.site_agent.training.client import Trainer

NAMES = ("alpha", "beta", "delta", "gamma")
MIB = 2**20
WINDOW = MIB // 2
"""What may be on its way: gRPC's and TCP's buffers at both ends, and the rest of a site's calls."""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A task whose update is four segments, and its trainer: (parameters, socket)."""
    folder = tmp_path_factory.mktemp("large")
    parameters = int(3.5 * SEGMENT_BYTES / 4)
    with installed_task(folder / "task", parameters):
        trainer = Trainer(folder / "trainer" / "socket", jobs=2)
        trainer.start()
        yield parameters, folder / "trainer" / "socket"
        trainer.close()


def large_study(make_consortium, large, *names):
    world = make_consortium(*names)
    parameters, world.trainer_socket = large
    for index, name in enumerate(names):
        world.policy(name, index, task=NAME)
    world.start_coordinator()
    manifest = world.manifest(
        "heart-1",
        suite="quorum",
        rounds=1,
        task=NAME,
        parameters=parameters,
        steps=1,
        join_window=300,
        upload=300,
    )
    world.start_study(manifest)
    [params] = [each for each in suite("quorum").parameter_sets.values() if each.name == "q32"]
    return world, params.chunk_count(parameters) * params.upload_chunk_bytes(0, parameters)


def events(world, name, event):
    lines = [json.loads(line) for line in world.log(name).splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


def test_an_upload_that_is_cut_goes_on_where_it_broke(make_consortium, large):
    world, size = large_study(make_consortium, large, "alpha", "beta")
    link = world.link("beta")
    link.cuts = [int(0.9 * SEGMENT_BYTES), int(2.5 * SEGMENT_BYTES), int(3.2 * SEGMENT_BYTES)]
    for name in world.names:
        world.start_site(name)
    world.wait(*world.names)
    assert not link.cuts and len(link.accepted) > 3
    assert size > 3 * SEGMENT_BYTES
    assert link.up < size + SEGMENT_BYTES + WINDOW, f"{link.up} bytes came of an update of {size}"
    check_study(world, "heart-1")


@pytest.mark.slow
def test_a_slow_upload_keeps_nobody_waiting(make_consortium, large):
    world, size = large_study(make_consortium, large, "alpha", "beta")
    link = world.link("beta")
    link.rate = size / 30
    for name in world.names:
        world.start_site(name)
    world.wait_for(lambda: link.up > SEGMENT_BYTES / 4, "the slow upload")
    began = time.monotonic()
    calls = 0
    world.wait_for(lambda: events(world, "alpha", "committed"), "the other site's commit", seconds=15)
    while time.monotonic() - began < 3:
        before = time.monotonic()
        world.study("heart-1")
        assert time.monotonic() - before < 2
        calls += 1
    assert calls >= 3 and not events(world, "beta", "committed")
    link.rate = None
    world.wait(*world.names)
    check_study(world, "heart-1")


def client_methods():
    return [name for name in vars(CoordinatorClient) if not name.startswith("_") and name != "cancel"]


@pytest.mark.parametrize("suite_name", ["quorum", pytest.param("shared-key", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_site_cut_off_at_each_of_its_calls_finishes(make_consortium, suite_name):
    world = make_consortium(*NAMES)
    world.start_coordinator()
    # A site that is cut off again and again comes too late to check the sum: it does in the third round.
    world.start_study(
        world.manifest("heart-1", suite=suite_name, rounds=3, minimum=4, join_window=300, upload=300)
    )
    world.link("beta")
    methods = client_methods()
    for name in NAMES:
        world.start_site(name, **({"CUT_AT": ",".join(methods)} if name == "beta" else {}))
    world.wait(*NAMES)
    cut = set((world.folder / "beta" / "cuts.txt").read_text().split())
    # Not asked for models, keys, or by a site that lacks none.
    seldom = {"request_model", "put_relay", "get_relay"}
    if suite_name == "shared-key":
        seldom = {"request_model", "put_relay", *quorum_only()}
    assert set(methods) - cut <= seldom
    rounds = check_study(world, "heart-1", min_opened=2)
    assert all(each.contributors == NAMES for each in rounds)


def quorum_only():
    named = ("shares", "acknowledgement", "answer", "answers", "update_chunks", "sum_check", "sum_checks")
    return {name for name in client_methods() if name.removeprefix("post_") in named}


@pytest.mark.slow
def test_a_link_that_falls_silent_is_noticed_and_dialled_again(make_consortium):
    world = make_consortium(*NAMES)
    world.start_coordinator()
    world.start_study(world.manifest("heart-1", suite="quorum", rounds=2, join_window=300, upload=300))
    silent = {name: world.link(name) for name in ("beta", "gamma")}
    for name in NAMES:
        if name != "delta":
            world.start_site(name, KEEPALIVE="6000")
    world.wait_for(lambda: all(events(world, name, "joined") for name in silent), "the joins")
    dialled = len(silent["beta"].accepted)
    for link in silent.values():
        link.hole = True
    began = time.monotonic()
    world.wait_for(lambda: events(world, "beta", "not connected"), "the notice", seconds=12 + 3)
    assert time.monotonic() - began >= 5
    # A signal ends the agent all the same, whatever it waits for.
    before = time.monotonic()
    world.processes["gamma"].terminate()
    assert world.processes["gamma"].wait(15) == 0, world.log("gamma")
    assert time.monotonic() - before < 15
    world.wait_for(lambda: len(events(world, "beta", "not connected")) >= 2, "another try", seconds=60)
    assert len(silent["beta"].accepted) > dialled
    for link in silent.values():
        link.hole = False
        link.cut()
    world.start_site("gamma")
    world.start_site("delta")
    world.wait(*NAMES)
    check_study(world, "heart-1")


@pytest.mark.slow
def test_a_cut_link_is_dialled_again_with_growing_and_uneven_pauses(make_consortium):
    world = make_consortium("alpha", "beta")
    world.start_coordinator()
    world.start_study(world.manifest("heart-1", rounds=1))
    link = world.link("beta")
    world.start_site("beta", once=False)
    world.wait_for(lambda: events(world, "beta", "connected"), "the connection")
    tried = len(link.accepted)
    link.cut(seconds=6)
    world.wait_for(lambda: len(events(world, "beta", "connected")) == 2, "the connection", seconds=30)
    pauses = [after - before for before, after in itertools.pairwise(link.accepted[tried:])]
    assert 2 <= len(pauses) <= 40, pauses
    assert len({round(pause, 3) for pause in pauses}) > 1 and max(pauses) > 2 * min(pauses), pauses


@pytest.mark.slow
def test_a_coordinator_that_restarts_under_open_streams(make_consortium):
    world = make_consortium(*NAMES)
    world.start_coordinator()
    world.start_study(world.manifest("heart-1", suite="quorum", rounds=1, join_window=300))
    for name in NAMES[1:]:
        world.start_site(name)
    world.wait_for(lambda: all(events(world, name, "joined") for name in NAMES[1:]), "the joins")
    for _ in range(2):
        began = time.monotonic()
        world.processes["hub"].terminate()
        assert world.processes["hub"].wait(15) == 0, world.log("hub")
        assert time.monotonic() - began < 5, "open streams held the coordinator up"
        world.start_coordinator()
        world.study("heart-1")
    world.start_site(NAMES[0])
    world.wait(*NAMES)
    assert [each.contributors for each in check_study(world, "heart-1")] == [NAMES]
