"""The example study of X-rays: what an admin signs, sites believe and policies allow, at the price that it states."""

from pathlib import Path

import pytest

from cipherward.crypto.shared_noise import metrics_noise_share
from cipherward.site_agent.daemon.constants import round_cost, training_constants
from cipherward.site_agent.ledger.accounting import epsilon, repeated
from cipherward.site_agent.tasks import registry
from cipherward.site_agent.tasks.medmnist.defaults import HEAD_STUDY
from cipherward.site_agent.training import weights
from cipherward.site_agent.training.constants import SharedNoise

EXAMPLE = Path(__file__).parents[3] / "examples" / "imaging" / "study.toml"


@pytest.fixture
def manifest(kit):
    text = EXAMPLE.read_text()
    for ours, theirs in zip(("north", "east", "south", "west"), kit.NAMES, strict=True):
        text = text.replace(f'"{ours}"', f'"{theirs}"')
    task = registry.find("medmnist-binary-head")
    return kit.trust(kit.build(text, parameter_count=weights.count(weights.build(task)))).manifest


def test_it_is_believed_and_costs_what_it_says(manifest):
    assert manifest.task.name == "medmnist-binary-head"
    assert 2.98 < epsilon(repeated(round_cost(manifest), manifest.rounds), manifest.dp.delta) <= 3.0
    assert metrics_noise_share(manifest) == pytest.approx(100)


def test_its_constants_are_the_measured_ones(manifest):
    constants = training_constants(manifest, "cleveland")
    assert isinstance(constants, SharedNoise)
    for name in ("sampling_rate", "steps", "learning_rate", "clip_norm", "metrics_noise_multiplier"):
        assert getattr(constants, name) == getattr(HEAD_STUDY, name), name
    assert manifest.rounds == HEAD_STUDY.rounds
    assert constants.divisor * 4 == pytest.approx(HEAD_STUDY.divisor, rel=0.01)
