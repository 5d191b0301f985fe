"""Strategies between real processes: rounds of dp-fedsgd have the noise that was promised, or are not opened; the
moments of fedadam go with the model to a site that was away, through restarts, and back with a round given up."""

import json

import numpy as np
import pytest
from fault_checker import check_study
from fault_task import NAME, installed_task

from cipherward.clock import SystemClock
from cipherward.crypto.shared_noise import noise_share
from cipherward.site_agent.offline import open_offline
from cipherward.site_agent.state.models import ModelStore
from cipherward.site_agent.status import export_model
from cipherward.site_agent.training.client import Trainer

NAMES = ("alpha", "beta", "delta", "gamma")
PARAMETERS = 23


def finished(world, names=NAMES):
    """The state that all sites agree on at the end."""
    states = [world.status(name, "heart-1") for name in names]
    assert {state["state"] for state in states} == {"finished"}
    assert len({state["model_digest"] for state in states}) == 1
    stores = [ModelStore(world.folder / name / "models") for name in names]
    models = [store.get(bytes.fromhex(states[0]["model_digest"])) for store in stores]
    assert len({model.tobytes() for model in models}) == 1
    return models[0]


def lines(world, name, event):
    found = [json.loads(line) for line in world.log(name).splitlines() if line.startswith("{")]
    return [line for line in found if line["event"] == event]


def test_rounds_of_dp_fedsgd_are_steps_on_the_sum_of_all_noised_gradients(make_consortium):
    world = make_consortium(*NAMES)
    world.start_coordinator()
    world.start_study(world.manifest("heart-1", suite="quorum", strategy="dp-fedsgd", rounds=2))
    for name in NAMES:
        world.start_site(name)
    world.wait(*NAMES)
    # The checker adds up the uploaded vectors and compares the models within the suite's error bound.
    check_study(world, "heart-1", min_opened=2)
    assert finished(world).size == PARAMETERS
    for line in lines(world, "alpha", "round finished"):
        # k = 3, c = 1: two shares are promised, four were there.
        assert line["promised_noise"] == 2.0 and line["realised_noise"] == round(2.0 * 2**0.5, 4)
    for entry in world.status("beta", "heart-1")["rounds"]:
        assert entry["noise_promised"] == 2.0 and entry["noise_realised"] == pytest.approx(2.0 * 2**0.5)


@pytest.mark.slow
def test_a_round_with_fewer_than_k_is_not_opened(make_consortium):
    world = make_consortium(*NAMES)
    world.start_coordinator()
    manifest = world.manifest(
        "heart-1", suite="quorum", strategy="dp-fedsgd", rounds=2, minimum=4, join_window=6
    )
    world.start_study(manifest)
    *present, late = NAMES
    for name in present:
        world.start_site(name)
    world.wait_for(lambda: "round aborted" in world.log("alpha"), "the end of a round of three")
    world.start_site(late)
    world.wait(*NAMES)
    rounds = check_study(world, "heart-1", min_opened=0)
    assert [len(each.contributors) for each in rounds] == [0, 4]
    assert not any(line["round"] == 1 for name in NAMES for line in lines(world, name, "round finished"))


@pytest.fixture(scope="module")
def noise_only(tmp_path_factory):
    """A task all of whose inputs are zero: what a site uploads for its weights is its noise. (parameters, socket)."""
    folder, parameters = tmp_path_factory.mktemp("noise"), 20_000
    with installed_task(folder / "task", parameters):
        trainer = Trainer(folder / "trainer" / "socket", jobs=2)
        trainer.start()
        yield parameters, folder / "trainer" / "socket"
        trainer.close()


@pytest.mark.slow
def test_the_noise_that_was_promised_is_there(make_consortium, noise_only):
    world = make_consortium(*NAMES)
    parameters, world.trainer_socket = noise_only
    for index, name in enumerate(NAMES):
        world.policy(name, index, task=NAME)
    world.start_coordinator()
    trust = world.start_study(
        world.manifest(
            "heart-1", suite="quorum", strategy="dp-fedsgd", rounds=1, task=NAME, parameters=parameters
        )
    )
    for name in NAMES:
        world.start_site(name)
    world.wait(*NAMES)
    check_study(world, "heart-1")
    dp = trust.manifest.dp
    # The bias, last of the parameters, has a gradient; the weights have none. Undo the step: 4 divisors of 10.
    noise = -finished(world)[:-1].astype(np.float64) * 40 / dp.learning_rate
    alone = []
    for name in NAMES:
        [path] = (world.folder / name / "kept" / "updates").iterdir()
        alone.append(np.frombuffer(path.read_bytes(), "<f4")[: parameters - 1].astype(np.float64))
    unit = trust.manifest.strategy.noise_range * noise_share(trust.manifest)
    share, whole = noise_share(trust.manifest), dp.noise_multiplier * dp.clipping_norm
    # 20,000 coordinates: a standard deviation is known to half a percent.
    for part in alone:
        assert np.std(unit * part) == pytest.approx(share, rel=0.03)
    assert np.abs(np.corrcoef(alone) - np.eye(4)).max() < 0.04
    assert np.std(noise) == pytest.approx(whole * np.sqrt(len(NAMES) / 2), rel=0.03)
    # What is left for three sites to see when one colludes, and when the fourth never came: the promise.
    left = unit * (alone[0] + alone[1])
    assert np.std(left) == pytest.approx(whole, rel=0.03)


@pytest.mark.slow
def test_moments_go_to_a_site_that_restarts_and_out_of_an_exported_model(make_consortium):
    world = make_consortium(*NAMES)
    world.start_coordinator()
    world.start_study(world.manifest("heart-1", suite="quorum", strategy="fedadam", rounds=3, join_window=20))
    for name in NAMES:
        if name != "beta":
            world.start_site(name)
    assert world.start_site("beta", CRASH_AFTER="client:post_commit").wait(60) == -9, world.log("beta")
    world.wait_for(lambda: "round finished" in world.log("alpha"), "round 1 without beta's answer")
    world.start_site("beta")
    world.wait(*NAMES)
    state = finished(world)
    assert state.size == 3 * PARAMETERS
    assert "took over the model from a peer" in world.log("beta")
    check_study(world, "heart-1", min_opened=3)
    out = world.folder / "model.npz"
    with open_offline(world.folder / "beta", SystemClock()) as site:
        said = export_model(site, "heart-1", out, force=False)
    with np.load(out) as file:
        assert (file["weights"] == state[:PARAMETERS]).all()
    assert said["parameters"] == PARAMETERS and said["weights_digest"] != said["model_digest"]
    evaluations = world.status("beta", "heart-1")["evaluations"]
    assert evaluations[-1]["round"] == 3


@pytest.mark.slow
def test_a_round_given_up_takes_its_moments_with_it(make_consortium):
    """One site opens a round that the others cannot: it goes back to the state before, with the moments of that."""
    given_up = 2
    world = make_consortium(*NAMES)
    world.start_coordinator()
    manifest = world.manifest(
        "heart-1",
        suite="quorum",
        strategy="fedadam",
        rounds=3,
        join_window=300,
        verify=3,
        collective_verification=False,
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
    world.wait_for(lambda: world.study("heart-1").round > given_up, "the end of the round")
    for name in others:
        world.start_site(name)
    world.wait(*NAMES)
    assert "back to the model before" in world.log(alone)
    assert finished(world).size == 3 * PARAMETERS
    rounds = check_study(world, "heart-1")
    assert [each.opened for each in rounds] == [each.number != given_up for each in rounds]
