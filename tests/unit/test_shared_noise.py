"""Training of ``dp-fedsgd``: a site's clipped sum with its share of the noise, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import nn

from cipherward.crypto.randomness import KeyStream
from cipherward.crypto.shared_noise import NOISE_ROOM
from cipherward.site_agent.tasks.base import BinaryTask, Records, Split
from cipherward.site_agent.training import weights
from cipherward.site_agent.training.constants import SharedNoise
from cipherward.site_agent.training.dpsgd import train
from cipherward.site_agent.training.gradients import PatientGradients

CPU = torch.device("cpu")
SHARED = SharedNoise(
    sampling_rate=1.0, steps=1, divisor=8.0, learning_rate=0.5, loss_bound=2.0, metrics_scale=10.0,
    clip_norm=0.7, noise_multiplier=1.3, metrics_noise_multiplier=4.0, honest=5.0, noise_range=32.0,
)  # fmt: skip


class Linear(BinaryTask):
    """Logistic regression on as many features as the records have."""

    name = "linear"

    def __init__(self, features: int) -> None:
        self._features = features

    def model(self) -> nn.Module:
        return nn.Linear(self._features, 1)

    def load(self, source: str, split: Split) -> Records:
        raise NotImplementedError


def some_records(owners: list[int], features: int) -> Records:
    generator = torch.Generator().manual_seed(1)
    return Records(
        torch.randn(len(owners), features, generator=generator),
        torch.randint(0, 2, (len(owners),), generator=generator).float(),
        tuple(f"p{owner}" for owner in owners),
    )


def upload(constants: SharedNoise, records: Records, key: int) -> NDArray[np.float32]:
    task = Linear(records.features.shape[1])
    start = np.zeros(records.features.shape[1] + 1, np.float32)
    return train(task, records, start, constants, KeyStream(key.to_bytes(32, "big"))).update


def test_the_sum_over_sites_is_the_pooled_clipped_sum_with_the_whole_noise() -> None:
    features, sites = 3000, 5
    groups = [[0, 1, 1], [2, 2, 3], [4], [5, 6, 6], [7, 8]]
    data = [some_records(group, features) for group in groups]
    unit = SHARED.noise_range * SHARED.noise_share
    opened = unit * np.sum([upload(SHARED, records, 9 + n) for n, records in enumerate(data)], axis=0)

    task = Linear(features)
    pooled = np.zeros(features + 1)
    for records in data:
        model = task.model()
        weights.assign(model, np.zeros(features + 1, np.float32))
        gradients = PatientGradients(task, model, records, CPU)
        pooled += gradients.clipped_sum(np.arange(gradients.patients), SHARED.clip_norm)[0].numpy()
    whole = SHARED.noise_multiplier * SHARED.clip_norm
    assert len(groups) == sites == SHARED.honest
    assert stats.kstest((opened - pooled) / whole, "norm").pvalue > 1e-4
    # The check would see a fifth of the noise missing.
    assert stats.kstest((opened - pooled) / whole * 0.8, "norm").pvalue < 1e-4


def test_an_empty_sample_uploads_noise_alone_within_one() -> None:
    nobody = replace(SHARED, sampling_rate=1e-12)
    update = upload(nobody, some_records([0, 1], 5000), 3)
    assert update.dtype == np.float32
    assert stats.kstest(update * SHARED.noise_range, "norm").pvalue > 1e-4


def test_a_coordinate_is_cut_before_the_noise_and_never_after_it() -> None:
    """Many patients with the same gradient in one coordinate: what is left of it has all its noise."""
    narrow = replace(SHARED, sampling_rate=1.0, noise_range=NOISE_ROOM + 0.25)
    records = Records(torch.full((40, 1), 100.0), torch.zeros(40), tuple(f"p{n}" for n in range(40)))
    start = np.zeros(2, np.float32)
    task = Linear(1)
    parts = np.array(
        [
            train(task, records, start, narrow, KeyStream(key.to_bytes(32, "big"))).update[0]
            for key in range(300)
        ]
    )
    assert np.abs(parts).max() < 1.0
    assert stats.kstest(parts * narrow.noise_range - 0.25, "norm").pvalue > 1e-4
    assert stats.kstest(parts * narrow.noise_range, "norm").pvalue < 1e-4


def test_it_does_not_move_with_learning_rate_or_divisor() -> None:
    """The step is taken by the sites together, with the opened sum."""
    records = some_records([0, 1, 2], 10)
    same = upload(replace(SHARED, learning_rate=7.0, divisor=99.0), records, 5)
    assert np.array_equal(upload(SHARED, records, 5), same)
