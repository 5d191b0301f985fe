"""Metrics that leave the site are bounded and noisy; those that stay are exact. Constants are checked."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score
from torch import nn

from cipherward.crypto.randomness import KeyStream
from cipherward.crypto.shared_noise import NOISE_ROOM
from cipherward.errors import FormatError, UsageError
from cipherward.site_agent.tasks.base import BinaryTask, Records, Split
from cipherward.site_agent.training import metrics
from cipherward.site_agent.training.constants import (
    DpSgd,
    PlainSgd,
    SharedNoise,
    TrainingConstants,
    from_json,
)

PLAIN = PlainSgd(
    sampling_rate=1.0, steps=1, divisor=1.0, learning_rate=1.0, loss_bound=2.0, metrics_scale=1.0
)
PRIVATE = DpSgd(
    sampling_rate=1.0, steps=1, divisor=1.0, learning_rate=1.0, loss_bound=2.0, metrics_scale=10.0,
    clip_norm=1.0, noise_multiplier=1.0, metrics_noise_multiplier=4.0,
)  # fmt: skip
SHARED = SharedNoise(
    sampling_rate=1.0, steps=1, divisor=1.0, learning_rate=1.0, loss_bound=2.0, metrics_scale=100.0,
    clip_norm=0.5, noise_multiplier=1.2, metrics_noise_multiplier=4.0, honest=9.0, noise_range=32.0,
)  # fmt: skip


class Identity(BinaryTask):
    """The feature is the logit."""

    name = "identity"

    def model(self) -> nn.Module:
        layer = nn.Linear(1, 1, bias=False)
        nn.init.ones_(layer.weight)
        return layer

    def load(self, source: str, split: Split) -> Records:
        raise NotImplementedError


def records(logits: list[float], labels: list[int], owners: list[int]) -> Records:
    return Records(
        torch.tensor(logits, dtype=torch.float32).reshape(-1, 1),
        torch.tensor(labels, dtype=torch.float32),
        tuple(f"p{owner}" for owner in owners),
    )


def sums(data: Records, constants: TrainingConstants = PLAIN, key: bytes = bytes(32)) -> np.ndarray:
    return metrics.federated(Identity(), Identity().model(), data, constants, KeyStream(key))


some_data = st.lists(
    st.tuples(st.floats(-1e4, 1e4) | st.just(math.nan), st.integers(0, 1), st.integers(0, 5)),
    min_size=1,
    max_size=30,
)


@settings(deadline=None, max_examples=60)
@given(some_data)
def test_one_patient_moves_the_metrics_by_at_most_the_sensitivity(
    data: list[tuple[float, int, int]],
) -> None:
    everyone = sums(records(*map(list, zip(*data, strict=True))))  # type: ignore[arg-type]
    assert np.isfinite(everyone).all()
    for patient in {owner for _, _, owner in data}:
        rest = [row for row in data if row[2] != patient]
        less = sums(records(*map(list, zip(*rest, strict=True)))) if rest else np.zeros(3)  # type: ignore[arg-type]
        assert np.linalg.norm(everyone - less) <= metrics.SENSITIVITY * (1 + 1e-9)
        assert everyone[2] - less[2] == 1


def test_means_are_per_patient_and_losses_are_clipped() -> None:
    data = records([0.0, 100.0, 0.0], [1, 0, 1], [0, 0, 1])
    loss, correct, patients = sums(data)
    # Patient 0: log 2 and a loss of 100 clipped to 2; patient 1: log 2. A logit of 0 says "no".
    assert loss == pytest.approx((math.log(2) + 2) / 2 / 2 + math.log(2) / 2)
    assert correct == 0
    assert patients == 2


@pytest.mark.parametrize(("private", "share"), [(PRIVATE, 1.0), (SHARED, 1 / 3)])
def test_metrics_noise_is_sigma_times_the_sensitivity(private: TrainingConstants, share: float) -> None:
    data = records([1.0, -1.0], [1, 1], [0, 1])
    exact = sums(data, replace(PLAIN, metrics_scale=private.metrics_scale))
    noise = np.concatenate([sums(data, private, number.to_bytes(32, "big")) - exact for number in range(600)])
    scale = share * PRIVATE.metrics_noise_multiplier * math.sqrt(3) / private.metrics_scale
    assert stats.kstest(noise / scale, "norm").pvalue > 1e-3
    assert stats.kstest(noise / scale * 2, "norm").pvalue < 1e-9  # the check would catch half of it


def test_a_sum_that_leaves_no_room_for_shared_noise_is_cut_before_the_noise() -> None:
    many = records([1.0] * 90, [1] * 90, list(range(90)))
    share = SHARED.metrics_noise_share * math.sqrt(3)
    noised = np.array([sums(many, SHARED, number.to_bytes(32, "big"))[2] for number in range(300)])
    assert noised.max() < 1.0
    cut = (noised * SHARED.metrics_scale - (SHARED.metrics_scale - NOISE_ROOM * share)) / share
    assert stats.kstest(cut, "norm").pvalue > 1e-3


def test_decoded_metrics_of_two_sites() -> None:
    one = records([5.0, -5.0], [1, 1], [0, 1])
    two = records([-5.0, -5.0], [0, 0], [0, 1])
    constants = replace(PLAIN, metrics_scale=7.0, loss_bound=6.0)
    both = metrics.decode(sums(one, constants) + sums(two, constants), constants)
    assert both.patients == pytest.approx(4)
    assert both.accuracy == pytest.approx(3 / 4)
    assert both.loss == pytest.approx((3 * math.log1p(math.exp(-5)) + math.log1p(math.exp(5))) / 4, rel=1e-5)


def test_decoding_survives_noise_larger_than_the_cohort() -> None:
    nothing = metrics.decode(np.array([3.0, 3.0, -1.0]), PLAIN)
    assert math.isnan(nothing.accuracy)
    odd = metrics.decode(np.array([-3.0, 9.0, 4.0]), PLAIN)
    assert (odd.loss, odd.accuracy) == (0.0, 1.0)
    with pytest.raises(FormatError):
        metrics.decode(np.zeros(4), PLAIN)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=1, max_size=40))
def test_auc_agrees_with_scikit_learn(data: list[tuple[bool, int]]) -> None:
    positive = np.array([label for label, _ in data])
    scores = np.array([score for _, score in data], dtype=np.float64)
    ours = metrics.auc(positive, scores)
    if positive.all() or not positive.any():
        assert ours is None
    else:
        assert ours == pytest.approx(roc_auc_score(positive, scores))


def test_evaluation_is_exact() -> None:
    data = records([2.0, -1.0, 0.5, 3.0], [1, 0, 0, 1], [0, 0, 1, 2])
    result = metrics.evaluate(Identity(), Identity().model(), data)
    losses = [math.log1p(math.exp(x)) for x in (-2.0, -1.0, 0.5, -3.0)]
    assert (result.records, result.patients, result.accuracy, result.auc) == (4, 3, 0.75, 1.0)
    assert result.loss == pytest.approx(sum(losses) / 4, rel=1e-6)
    with pytest.raises(UsageError, match="no records"):
        metrics.evaluate(Identity(), Identity().model(), records([], [], []))


@pytest.mark.parametrize("constants", [PLAIN, PRIVATE, SHARED, replace(PRIVATE, proximal=0.5)])
def test_constants_travel_as_json(constants: TrainingConstants) -> None:
    assert from_json(json.loads(json.dumps(constants.to_json()))) == constants


@pytest.mark.parametrize(
    "change",
    [
        {"noise_multiplier": 0.0},
        {"noise_multiplier": math.nan},
        {"metrics_noise_multiplier": 0.0},
        {"clip_norm": math.inf},
        {"clip_norm": -1.0},
        {"sampling_rate": 1.5},
        {"steps": 0},
        {"steps": 2.5},
        {"divisor": 0.0},
        {"proximal": -0.1},
        {"proximal": math.inf},
    ],
)
def test_private_constants_cannot_turn_privacy_off(change: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        replace(PRIVATE, **change)


@pytest.mark.parametrize(
    "change",
    [
        {"noise_multiplier": 0.0},
        {"metrics_noise_multiplier": 0.0},
        {"clip_norm": 0.0},
        {"honest": 0.5},
        {"honest": math.nan},
        {"noise_range": 0.0},
        {"steps": 2},
    ],
)
def test_shared_noise_cannot_be_turned_off(change: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        replace(SHARED, **change)


def test_a_share_of_the_noise() -> None:
    assert SHARED.noise_share == pytest.approx(0.5 * 1.2 / 3)
    assert SHARED.metrics_noise_share == pytest.approx(4 / 3)


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        {**PRIVATE.to_json(), "kind": "plain-sgd"},
        {**PLAIN.to_json(), "kind": "dp-sgd"},
        {**PRIVATE.to_json(), "kind": "none"},
        {**PRIVATE.to_json(), "extra": 1},
        {**PRIVATE.to_json(), "honest": 2.0},
        {**PRIVATE.to_json(), "kind": "dp-fedsgd"},
        {**SHARED.to_json(), "proximal": 0.0},
        {**PRIVATE.to_json(), "divisor": "8"},
    ],
)
def test_malformed_constants_are_refused(value: object) -> None:
    with pytest.raises(FormatError):
        from_json(value)
