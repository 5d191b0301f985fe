"""The demo's study by each strategy is one that sites believe, for the numbers of sites that a demo may have."""

import tomllib
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from cipherward.crypto.shared_noise import NOISE_ROOM, metrics_noise_share
from cipherward.crypto.strategies import STRATEGIES
from cipherward.errors import CipherwardError, UsageError
from cipherward.evaluation.demo.consortium import DemoConsortium
from cipherward.evaluation.demo.run import Options, hospital_parts, run
from cipherward.evaluation.demo.studies import check_demo, demo_study, study_file

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


@pytest.mark.parametrize("example, strategy", [("study.toml", "fedavg"), ("dp-fedsgd.toml", "dp-fedsgd")])
def test_the_examples_train_as_the_demo_does(example, strategy):
    written = tomllib.loads((Path(__file__).parents[2] / "examples/heart" / example).read_text())
    training = demo_study(strategy, None, 3.0).training
    assert written["dp"]["clipping_norm"] == training.clip_norm
    assert {name: written["training"][name] for name in ("sampling_rate", "steps", "learning_rate")} == {
        "sampling_rate": training.sampling_rate,
        "steps": training.steps,
        "learning_rate": training.learning_rate,
    }
    assert (
        written["training"]["batch_divisor"] == training.divisor
        and written["study"]["rounds"] == training.rounds
    )


def test_shared_noise_needs_three_sites_and_keys_that_are_shared_out(tmp_path):
    consortium = DemoConsortium(tmp_path)
    sources = hospital_parts(2)
    for name in sources:
        consortium.enrol(name)
    study = demo_study("dp-fedsgd", 3, 1.0)
    for suite, words in (("quorum", "no colluding site"), ("shared-key", "cannot run in the suite")):
        with pytest.raises(CipherwardError, match=words):
            consortium.sign(study_file(study, suite, sources, 2.5), np.zeros(23, np.float32), bytes(32))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strategy": "dp-fedsgd", "suite": "shared-key"}, "cannot run in the suite shared-key"),
        ({"strategy": "dp-fedsgd", "sites": 2}, "cannot run with 2 sites"),
        ({"strategy": "fedmagic"}, "no strategy"),
        ({"suite": "rot13"}, "no suite"),
        ({"json": Path("nowhere/out.json")}, "cannot write"),
        ({"epsilon": 1e-4}, "noise"),
    ],
)
def test_what_is_refused_leaves_the_earlier_demo_there(tmp_path, changes, words):
    (tmp_path / ".cipherward-demo").touch()
    (tmp_path / "report.html").write_text("the earlier one")
    options = Options(suite="quorum", sites=4, rounds=None, epsilon=3.0, workdir=tmp_path, json=None)
    with pytest.raises(CipherwardError, match=words):
        run(replace(options, **changes))
    assert (tmp_path / "report.html").read_text() == "the earlier one"


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_a_demo_is_refused_exactly_if_its_manifest_would_be(tmp_path, count):
    consortium = DemoConsortium(tmp_path)
    sources = hospital_parts(count)
    for name in sources:
        consortium.enrol(name)
    for strategy, suite in product(STRATEGIES, ("quorum", "shared-key")):
        study = demo_study(strategy, None, 3.0)
        refused = _refused(check_demo, study, suite, count)
        file = study_file(study, suite, sources, 2.5)
        assert refused == _refused(consortium.sign, file, np.zeros(23, np.float32), bytes(32)), (
            strategy,
            suite,
        )


def _refused(action, *arguments):
    try:
        action(*arguments)
    except CipherwardError:
        return True
    return False


def test_rounds_and_epsilon_are_the_users():
    study = demo_study("fedyogi", 7, 1.5)
    assert (study.training.rounds, study.training.epsilon) == (7, 1.5)
    with pytest.raises(UsageError, match="no strategy 'fedmagic'"):
        demo_study("fedmagic", None, 3.0)
