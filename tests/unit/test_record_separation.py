"""A model or loss that lets records of a batch see each other is refused: no clipping bounds a patient there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from cipherward.errors import UsageError
from cipherward.site_agent.tasks.base import BinaryTask, Records, Split
from cipherward.site_agent.training.gradients import PatientGradients
from cipherward.site_agent.training.separation import mixes_records

torch.set_num_threads(1)


class OwnModel(BinaryTask):
    name = "own-model"

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer

    def model(self) -> nn.Sequential:
        return nn.Sequential(self._layer, nn.Linear(6, 1))

    def load(self, source: str, split: Split) -> Records:
        raise NotImplementedError


class Balanced(OwnModel):
    """Weights the loss by how many of the batch have the label."""

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return super().loss(outputs, labels) * (labels == 1).float().mean()


class OverBatch(nn.Module):
    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self._change = change

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._change(x)


class InTraining(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0) if self.training else x


def sampler(task: BinaryTask) -> PatientGradients:
    records = Records(torch.randn(5, 6), torch.zeros(5), ("a", "b", "c", "d", "e"))
    return PatientGradients(task, task.model(), records, torch.device("cpu"))


MIXERS: dict[str, Callable[[], nn.Module]] = {
    "mean": lambda: OverBatch(lambda x: x - x.mean(0)),
    "mean without a gradient": lambda: OverBatch(lambda x: x - x.mean(0).detach()),
    "batch norm without a module": lambda: OverBatch(
        lambda x: nn.functional.batch_norm(x, None, None, training=True)
    ),
    "order": lambda: OverBatch(lambda x: x.flip(0)),
    "in training only": InTraining,
}


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("zero", [False, True])
def test_a_model_that_mixes_records_is_refused(name: str, zero: bool) -> None:
    task = OwnModel(MIXERS[name]())
    model = task.model()
    if zero:  # what comes out tells nothing then
        nn.init.zeros_(model[1].weight)
        task.model = lambda: model  # type: ignore[method-assign]
    with pytest.raises(UsageError, match="depends on the other records"):
        sampler(task)


def test_a_loss_that_looks_at_the_batch_is_refused() -> None:
    with pytest.raises(UsageError, match="depends on the other records"):
        sampler(Balanced(nn.Tanh()))


@pytest.mark.parametrize(
    ("layer", "features"),
    [
        (nn.Dropout(0.5), None),
        (nn.LayerNorm(6), None),
        (nn.Sequential(nn.Unflatten(1, (2, 3)), nn.GroupNorm(1, 2), nn.Flatten()), None),
        (nn.Sequential(nn.Embedding(4, 2), nn.Flatten()), torch.randint(0, 4, (5, 3))),
        (OverBatch(lambda x: x.float() / 255), torch.randint(0, 256, (5, 6), dtype=torch.uint8)),
    ],
)
def test_others_pass_and_are_as_they_were(layer: nn.Module, features: torch.Tensor | None) -> None:
    task = OwnModel(layer)
    model, values = task.model(), torch.randn(5, 6) if features is None else features
    records = Records(values, torch.zeros(5), ("a", "b", "c", "d", "e"))
    before, state = [one.detach().clone() for one in model.parameters()], torch.random.get_rng_state()
    assert not mixes_records(task, model, records)
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(map(torch.equal, model.parameters(), before))
