"""DP-SGD: who is in a batch, and which models it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from kit_dpsgd import FEATURES, PLAIN, PRIVATE, Network, network_start, some_records, stream
from numpy.typing import NDArray
from scipy import stats
from torch import nn

from cipherward.errors import FormatError, UsageError
from cipherward.site_agent.tasks.base import Records, Task
from cipherward.site_agent.training import weights
from cipherward.site_agent.training.dpsgd import train
from cipherward.site_agent.training.gradients import PatientGradients

# Sampling


def batches(rate: float, steps: int, patients: int) -> list[NDArray[np.int64]]:
    seen: list[NDArray[np.int64]] = []
    clipped_sum = PatientGradients.clipped_sum

    def spy(
        self: PatientGradients, chosen: NDArray[np.int64], clip_norm: float | None
    ) -> tuple[torch.Tensor, int]:
        seen.append(chosen)
        return clipped_sum(self, chosen, clip_norm)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PatientGradients, "clipped_sum", spy)
        # Two records a patient: it is patients who are sampled.
        records = some_records([*range(patients), *range(patients)])
        constants = replace(PRIVATE, sampling_rate=rate, steps=steps)
        train(Network(), records, network_start(), constants, stream(5))
    return seen


def test_sampling_is_poisson_over_patients() -> None:
    rate, steps, patients = 0.2, 300, 60
    seen = batches(rate, steps, patients)
    sizes = np.array([len(batch) for batch in seen])
    expected = stats.binom(patients, rate)
    # Shuffled batches of fixed size would have the mean and none of the variance.
    assert abs(sizes.mean() - expected.mean()) < 4 * expected.std() / np.sqrt(steps)
    assert stats.kstest(sizes + stream(6).uniform53(steps), lambda x: np.interp(
        x, np.arange(patients + 2), np.concatenate([[0], expected.cdf(np.arange(patients + 1))])
    )).pvalue > 1e-4  # fmt: skip
    each = np.bincount(np.concatenate(seen), minlength=patients)
    assert stats.chisquare(each, np.full(patients, each.mean())).pvalue > 1e-4
    member = np.zeros((steps, patients))
    for number, batch in enumerate(seen):
        member[number, batch] = 1
    # A shuffled epoch would make a patient's turns avoid each other.
    correlation = np.corrcoef(member[:-1].ravel(), member[1:].ravel())[0, 1]
    assert abs(correlation) < 4 / np.sqrt(member[1:].size)


def test_a_sampling_rate_of_one_takes_everybody() -> None:
    assert all(len(batch) == 30 for batch in batches(1.0, 5, 30))


def test_no_patients_at_all_still_gives_a_noisy_update() -> None:
    nobody = Records(torch.zeros(0, FEATURES), torch.zeros(0), ())
    result = train(Network(), nobody, network_start(), PRIVATE, stream())
    assert np.abs(result.update).min() > 0
    assert np.isfinite(result.metrics).all()


# Models


class Broken(Network):
    """A task whose model or loss a test supplies."""

    def __init__(self, model: Callable[[], nn.Module], loss: object = None) -> None:
        self._model = model
        self._loss = loss

    def model(self) -> nn.Module:
        return self._model()

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = super().loss(outputs, labels)
        return loss.mean() if self._loss == "mean" else loss


class Unused(nn.Module):
    """Has a layer that its output does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(FEATURES, 1)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.used(x)
        return outputs


def normalised(*, track_running_stats: bool) -> nn.Module:
    norm = nn.BatchNorm1d(FEATURES, track_running_stats=track_running_stats)
    return nn.Sequential(norm, nn.Linear(FEATURES, 1))


def frozen() -> nn.Module:
    layer = nn.Linear(FEATURES, 1)
    for parameter in layer.parameters():
        parameter.requires_grad = False
    return layer


@pytest.mark.parametrize(
    ("task", "problem"),
    [
        (Broken(lambda: normalised(track_running_stats=True)), "BatchNorm.*GroupNorm"),
        (Broken(lambda: normalised(track_running_stats=False)), "cannot be trained privately"),
        (Broken(lambda: nn.Linear(FEATURES, 1).double()), "not float32"),
        (Broken(frozen), "nothing to train"),
        (Broken(lambda: nn.Linear(FEATURES, 1), "mean"), "one loss a record"),
    ],
)
def test_models_that_cannot_be_private_are_refused(task: Task, problem: str) -> None:
    start = np.zeros(sum(p.numel() for p in task.model().parameters() if p.requires_grad), np.float32)
    with pytest.raises(UsageError, match=problem):
        train(task, some_records([0, 1, 2]), start, replace(PRIVATE, sampling_rate=1.0), stream())


def test_a_layer_that_no_record_reaches_gets_noise_alone() -> None:
    """Nobody can tell from the update whether a layer was reached."""
    update = train(Broken(Unused), some_records([0, 1]), np.zeros(11, np.float32), PRIVATE, stream()).update
    assert np.abs(update).min() > 0
    plain = train(Broken(Unused), some_records([0, 1]), np.zeros(11, np.float32), PLAIN, stream()).update
    assert (plain[:5] != 0).all()
    assert (plain[5:] == 0).all()


def test_frozen_parameters_stay_and_do_not_travel() -> None:
    def half_frozen() -> nn.Module:
        model = nn.Sequential(nn.Linear(FEATURES, 3), nn.Tanh(), nn.Linear(3, 1))
        for parameter in model[0].parameters():
            parameter.requires_grad = False
        return model

    task = Broken(half_frozen)
    start = weights.initial(task, 1)
    assert start.shape == (4,)
    assert train(task, some_records([0, 1]), start, PRIVATE, stream()).update.shape == (4,)


def test_weights_that_do_not_fit_are_refused() -> None:
    model = Network().model()
    with pytest.raises(FormatError, match=r"shape \(3,\).*19 parameters"):
        weights.assign(model, np.zeros(3, np.float32))
    bad = network_start()
    bad[2] = np.nan
    with pytest.raises(FormatError, match="NaN"):
        weights.assign(model, bad)


def test_flatten_is_the_inverse_of_assign_in_named_order() -> None:
    model = Network().model()
    vector = np.arange(19, dtype=np.float32)
    weights.assign(model, vector)
    assert np.array_equal(weights.flatten(model), vector)
    assert list(dict(model.named_parameters())) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert model[0].weight[0, 1] == 1  # type: ignore[index]
    assert model[2].bias[0] == 18  # type: ignore[index]


def test_divergence_is_an_error_not_a_nan() -> None:
    constants = replace(PRIVATE, learning_rate=1e38, noise_multiplier=1e6)
    with pytest.raises(UsageError, match="diverged"):
        train(Network(), some_records([0]), network_start(), constants, stream())
