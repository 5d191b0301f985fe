"""The demo's study by each strategy is one that sites believe, for the numbers of sites that a demo may have."""

import numpy as np
import pytest

from cipherward.crypto.shared_noise import NOISE_ROOM, metrics_noise_share
from cipherward.crypto.strategies import STRATEGIES
from cipherward.errors import CipherwardError, UsageError
from cipherward.evaluation.demo.consortium import DemoConsortium
from cipherward.evaluation.demo.run import hospital_parts
from cipherward.evaluation.demo.studies import demo_study, study_file

LARGEST_HOSPITAL = 203


@pytest.mark.parametrize("count", [3, 16, 56])
def test_every_strategy_signs(tmp_path, count):
    consortium = DemoConsortium(tmp_path)
    sources = hospital_parts(count)
    for name in sources:
        consortium.enrol(name)
    for strategy in STRATEGIES:
        study = demo_study(strategy, None, 3.0)
        _, manifest = consortium.sign(
            study_file(study, "quorum", sources, 2.5), np.zeros(23, np.float32), bytes(32)
        )
        assert manifest.strategy.name == strategy and manifest.rounds == study.training.rounds
        if strategy == "dp-fedsgd":
            assert manifest.suite.parameters == ("q16" if count <= 55 else "q32")
            room = manifest.dp.metrics.scale - NOISE_ROOM * metrics_noise_share(manifest)
            assert room >= LARGEST_HOSPITAL * min(1, 4 / count)
        else:
            assert manifest.suite.parameters == "q32"


def test_shared_noise_needs_three_sites_and_keys_that_are_shared_out(tmp_path):
    consortium = DemoConsortium(tmp_path)
    sources = hospital_parts(2)
    for name in sources:
        consortium.enrol(name)
    study = demo_study("dp-fedsgd", 3, 1.0)
    for suite, words in (("quorum", "no colluding site"), ("shared-key", "cannot run in the suite")):
        with pytest.raises(CipherwardError, match=words):
            consortium.sign(study_file(study, suite, sources, 2.5), np.zeros(23, np.float32), bytes(32))


def test_rounds_and_epsilon_are_the_users():
    study = demo_study("fedyogi", 7, 1.5)
    assert (study.training.rounds, study.training.epsilon) == (7, 1.5)
    with pytest.raises(UsageError, match="no strategy 'fedmagic'"):
        demo_study("fedmagic", None, 3.0)
