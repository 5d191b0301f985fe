"""A study without differential privacy: no bound holds, and the ledger says so."""

import math

import pytest

from cipherward.cli.site_view import print_ledger
from cipherward.clock import SystemClock
from cipherward.proto.v1 import study_pb2 as sp
from cipherward.site_agent.ledger.accounting import NO_PRIVACY
from cipherward.site_agent.ledger.chain import Kind
from cipherward.site_agent.ledger.encoding import events_from_json
from cipherward.site_agent.offline import open_offline
from cipherward.site_agent.spending import ledger_status
from cipherward.site_agent.spending_plot import svg


@pytest.fixture
def open_world(world):
    """The hospital allows it, and the study is signed so."""
    path = world.folder / "alpha" / "policy.toml"
    text = path.read_text().replace("require_dp = true", "require_dp = false")
    path.write_text(text.replace("epsilon_ceiling = 20.0", "epsilon_ceiling = inf"))
    world.site.engine.dispose()
    world.site = world.open_site()
    plain = sp.PlainTraining(
        steps=5,
        learning_rate=0.5,
        sampling_rate=0.1,
        metrics=sp.MetricsPolicy(loss_bound=4.0, scale=200.0),
    )
    manifest = world.manifest(dp_disabled=True)
    manifest.ClearField("dp")
    manifest.plain.CopyFrom(plain)
    world.publish(manifest)
    return world


def test_a_round_without_noise_is_in_the_ledger_before_it_trains(open_world, capsys):
    world, agent = open_world, open_world.admit()
    world.to_commit(agent, 1)
    [(_, entry)] = [item for item in world.site.ledger.entries() if item[1].kind is Kind.RESERVE]
    assert events_from_json(entry.details["events"]) == NO_PRIVACY
    assert (entry.study, entry.round, entry.details["ceiling"]) == ("heart-1", 1, "inf")
    assert math.isinf(world.site.ledger.spent("heart", 1e-5))
    with open_offline(world.folder / "alpha", SystemClock()) as offline:
        found = ledger_status(offline)
    [data_set] = found["data_sets"]
    assert (data_set["reservations"], data_set["epsilon"], data_set["epsilon_left"]) == (1, None, None)
    print_ledger(found)
    printed = capsys.readouterr().out
    assert "epsilon inf of inf spent" in printed and "reserve" in printed and "no noise" in printed
    assert "no bound from here on" in svg(found["data_sets"])


def test_an_aborted_round_without_noise_is_lost_too(open_world):
    world, agent = open_world, open_world.admit()
    world.to_commit(agent, 1)
    world.abort(agent, 1)
    agent.release.catch_up(1, 2)
    assert [entry.kind for _, entry in world.site.ledger.entries()] == [
        Kind.REGISTER,
        Kind.RESERVE,
        Kind.LOST,
    ]
