"""DP-SGD: the unit of privacy is the patient, the noise is all there, and without both it is plain SGD."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kit_dpsgd import (
    CPU,
    PLAIN,
    PRIVATE,
    Network,
    Wide,
    network_start,
    some_records,
    stream,
    sum_over_everyone,
    without,
)
from numpy.typing import NDArray
from scipy import stats
from torch import nn

from cipherward.crypto.randomness import KeyStream
from cipherward.site_agent.tasks.base import Records, Task
from cipherward.site_agent.training import gradients, weights
from cipherward.site_agent.training.constants import PlainSgd
from cipherward.site_agent.training.dpsgd import train
from cipherward.site_agent.training.gradients import PatientGradients

# Unit of privacy


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=25),
    st.sampled_from([1e-3, 0.5, 10.0]),
    st.sampled_from([0.01, 1.0, 300.0]),
    st.integers(0, 1000),
)
def test_removing_all_records_of_a_patient_moves_the_sum_by_at_most_c(
    owners: list[int], clip_norm: float, scale: float, seed: int
) -> None:
    records = some_records(owners, seed=seed, scale=scale)
    start = network_start()
    everyone = sum_over_everyone(records, clip_norm, start)
    for patient in records.patients:
        rest = sum_over_everyone(without(records, patient), clip_norm, start)
        # Float32 rounding in the other patients' gradients, whose kernels see another batch size.
        assert (everyone - rest).norm() <= clip_norm * (1 + 1e-5 * len(owners))


def test_many_records_of_one_patient_count_as_one_vector() -> None:
    """Clipping each record in the place of each patient would let this patient move the sum by 40 C."""
    one = some_records([0], scale=50.0)
    many = Records(one.features.repeat(40, 1), one.labels.repeat(40), one.patient_ids * 40)
    total = sum_over_everyone(many, 0.1, network_start())
    assert float(total.norm()) == pytest.approx(0.1, rel=1e-6)


def test_small_gradients_are_not_scaled_up() -> None:
    records = some_records([0, 0, 1, 2])
    start = network_start()
    assert torch.allclose(sum_over_everyone(records, 1e6, start), sum_over_everyone(records, None, start))


@pytest.mark.parametrize("values", [1, 64, 200])
def test_the_sum_does_not_depend_on_how_much_fits_in_memory(
    monkeypatch: pytest.MonkeyPatch, values: int
) -> None:
    records = some_records([0, 1, 0, 2, 2, 2, 2, 1, 3, 0])
    start = network_start()
    whole = sum_over_everyone(records, 0.3, start)
    monkeypatch.setattr(gradients, "_GRADIENT_VALUES", values)
    monkeypatch.setattr(gradients, "_ACTIVATION_VALUES", {"cpu": values})
    assert torch.allclose(sum_over_everyone(records, 0.3, start), whole, atol=1e-4)


def test_the_clipped_sum_is_what_autograd_gives_patient_by_patient() -> None:
    records = some_records([0, 1, 0, 2, 2, 2, 1], scale=3.0)
    start = network_start()
    expected = torch.zeros(weights.count(Network().model()), dtype=torch.float64)
    for patient in records.patients:
        mine = [number for number, name in enumerate(records.patient_ids) if name == patient]
        model = Network().model()
        weights.assign(model, start)
        Network().loss(model(records.features[mine]), records.labels[mine]).sum().backward()
        gradient = torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]).double()
        expected += gradient * min(1.0, 0.5 / float(gradient.norm()))
    assert torch.allclose(sum_over_everyone(records, 0.5, start), expected, atol=1e-5)


def test_a_gradient_that_is_not_a_number_counts_as_zero() -> None:
    records = some_records([0, 1, 2, 2])
    poisoned = Records(records.features.clone(), records.labels, records.patient_ids)
    poisoned.features[1, 0] = float("nan")
    start = network_start()
    expected = sum_over_everyone(without(records, "p1"), 0.5, start)
    assert torch.allclose(sum_over_everyone(poisoned, 0.5, start), expected, atol=1e-6)
    result = train(Network(), poisoned, start, replace(PRIVATE, sampling_rate=1.0), stream())
    assert result.dropped == PRIVATE.steps
    assert np.isfinite(result.update).all()
    assert np.isfinite(result.metrics).all()


# No noise and no clipping is plain SGD


class Squares(Network):
    """A linear model with squared loss: on small integers every operation is exact in float32."""

    def model(self) -> nn.Module:
        layer = nn.Linear(2, 1)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        return layer

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return (outputs[:, 0] - labels) ** 2


def torch_sgd(task: Task, records: Records, start: NDArray[np.float32], constants: PlainSgd) -> nn.Module:
    model = task.model()
    weights.assign(model, start)
    optimizer = torch.optim.SGD(model.parameters(), lr=constants.learning_rate)
    for _ in range(constants.steps):
        optimizer.zero_grad()
        (task.loss(model(records.features), records.labels).sum() / constants.divisor).backward()
        optimizer.step()
    return model


def test_no_noise_and_no_clipping_is_plain_sgd_exactly() -> None:
    records = Records(
        torch.tensor([[1.0, 0.0], [-1.0, 2.0], [0.0, 1.0], [2.0, 1.0]]),
        torch.tensor([1.0, -1.0, 0.0, 2.0]),
        ("a", "b", "a", "c"),
    )
    constants = replace(PLAIN, steps=3, divisor=8.0, learning_rate=0.125)
    start = np.zeros(3, np.float32)
    update = train(Squares(), records, start, constants, stream()).update
    assert np.array_equal(update, weights.flatten(torch_sgd(Squares(), records, start, constants)))
    assert np.abs(update).max() > 0


def test_no_noise_and_no_clipping_is_plain_sgd_on_a_network() -> None:
    records = some_records([0, 0, 1, 2, 3, 3, 3])
    start = network_start()
    update = train(Network(), records, start, PLAIN, stream()).update
    expected = weights.flatten(torch_sgd(Network(), records, start, PLAIN)) - start
    assert np.allclose(update, expected, atol=1e-6)


# FedProx


def test_the_proximal_term_pulls_towards_the_start() -> None:
    """mu (w - w_start) is added to each step's gradient (Li et al., MLSys 2020, equation 2)."""
    records = some_records([0, 0, 1, 2, 3, 3, 3])
    start = network_start()
    mu = 0.8
    model = Network().model()
    weights.assign(model, start)
    anchor = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=PLAIN.learning_rate)
    for _ in range(PLAIN.steps):
        optimizer.zero_grad()
        loss = Network().loss(model(records.features), records.labels).sum() / PLAIN.divisor
        pull = sum(((p - a) ** 2).sum() for p, a in zip(model.parameters(), anchor, strict=True))
        (loss + mu / 2 * pull).backward()
        optimizer.step()
    expected = weights.flatten(model) - start
    update = train(Network(), records, start, replace(PLAIN, proximal=mu), stream()).update
    assert np.allclose(update, expected, atol=1e-6)
    assert np.linalg.norm(update) < np.linalg.norm(train(Network(), records, start, PLAIN, stream()).update)


def test_the_proximal_term_is_added_after_the_noise() -> None:
    """With noise alone, each step is w - w_start <- (1 - lr mu) (w - w_start) - lr noise / divisor: it
    depends on nothing but what was released."""
    constants = replace(PRIVATE, sampling_rate=1e-9, steps=2, learning_rate=1.0, divisor=2.0)
    records = some_records([0, 1], features=5000)
    zeros = np.zeros(5001, np.float32)
    one = train(Wide(), records, zeros, replace(constants, steps=1), stream(1)).update
    free = train(Wide(), records, zeros, constants, stream(1)).update
    pulled = train(Wide(), records, zeros, replace(constants, proximal=0.25), stream(1)).update
    assert np.allclose(pulled, free - 0.25 * one, atol=1e-6)


def test_no_proximal_term_gives_the_bits_of_sgd_without_one() -> None:
    records, start = some_records([0, 0, 1, 2]), network_start()
    model = Network().model()
    weights.assign(model, start)
    gradients = PatientGradients(Network(), model, records, CPU)
    for _ in range(PLAIN.steps):
        total, _ = gradients.clipped_sum(np.arange(gradients.patients), None)
        gradients.step(total * (PLAIN.learning_rate / PLAIN.divisor))
    expected = weights.flatten(model) - start
    assert np.array_equal(train(Network(), records, start, PLAIN, stream()).update, expected)
    pulled = train(Network(), records, start, replace(PLAIN, proximal=1e-3), stream()).update
    assert not np.array_equal(pulled, expected)


# Noise. Each check is also shown to catch the mutants it exists for.


def noise_is_as_claimed(number: int = 1) -> bool:
    """Empty batches take noisy steps: what comes out is the noise alone."""
    constants = replace(PRIVATE, sampling_rate=1e-9, steps=4, learning_rate=1.0, divisor=2.0)
    records = some_records([0, 1], features=5000)
    update = train(Wide(), records, np.zeros(5001, np.float32), constants, stream(number)).update
    scale = np.sqrt(constants.steps) * constants.noise_multiplier * constants.clip_norm / constants.divisor
    return bool(stats.kstest(update / scale, "norm").pvalue > 1e-4)


def test_the_noise_is_gaussian_with_the_full_standard_deviation() -> None:
    assert noise_is_as_claimed()


def halve_the_noise(patch: pytest.MonkeyPatch) -> None:
    gaussian = KeyStream.gaussian
    patch.setattr(KeyStream, "gaussian", lambda self, count: gaussian(self, count) / 2)


def clip_after_the_noise(patch: pytest.MonkeyPatch) -> None:
    step = PatientGradients.step
    norm = PRIVATE.clip_norm / 2.0  # over the divisor
    patch.setattr(
        PatientGradients, "step", lambda self, move: step(self, move * min(1.0, norm / float(move.norm())))
    )


@pytest.mark.parametrize("mutate", [halve_the_noise, clip_after_the_noise])
def test_the_noise_check_catches(
    monkeypatch: pytest.MonkeyPatch, mutate: Callable[[pytest.MonkeyPatch], None]
) -> None:
    mutate(monkeypatch)
    assert not noise_is_as_claimed()


def noises_are_independent() -> bool:
    """Between the steps of a round and between rounds."""
    seen: list[NDArray[np.float64]] = []
    records = some_records([0, 1], features=5000)
    constants = replace(PRIVATE, sampling_rate=1e-9, steps=3)
    step = PatientGradients.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            PatientGradients, "step", lambda self, move: (seen.append(move.numpy().copy()), step(self, move))
        )
        for _ in range(2):
            train(Wide(), records, np.zeros(5001, np.float32), constants, KeyStream())
    correlations = np.corrcoef(seen)[np.triu_indices(6, 1)]
    return bool(np.abs(correlations).max() < 6 / np.sqrt(5001))


def test_noise_is_never_used_twice() -> None:
    assert noises_are_independent()


def test_the_independence_check_catches_reused_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = KeyStream.gaussian
    monkeypatch.setattr(KeyStream, "gaussian", lambda self, count: fresh(stream(9), count))
    assert not noises_are_independent()


def one_patient_is_bounded() -> bool:
    """A patient with huge gradients, in every step, with hardly any noise: each step moves by at most C."""
    constants = replace(PRIVATE, sampling_rate=1.0, steps=1, divisor=1.0, learning_rate=1.0)
    constants = replace(constants, noise_multiplier=1e-7)
    records = some_records([0] * 30, scale=100.0)
    update = train(Network(), records, network_start(), constants, stream()).update
    return float(np.linalg.norm(update)) <= constants.clip_norm * 1.0001


def test_a_step_moves_by_at_most_c_for_one_patient() -> None:
    assert one_patient_is_bounded()


def test_the_bound_check_catches_missing_clipping(monkeypatch: pytest.MonkeyPatch) -> None:
    clipped_sum = PatientGradients.clipped_sum
    monkeypatch.setattr(
        PatientGradients, "clipped_sum", lambda self, chosen, clip_norm: clipped_sum(self, chosen, None)
    )
    assert not one_patient_is_bounded()
