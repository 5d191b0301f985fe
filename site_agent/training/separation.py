"""Whether a model keeps records apart. Clipping bounds what a patient does through the patient's own gradient: a model
or loss that takes, say, a mean over the batch lets a patient change everybody else's as well, without any bound."""

from __future__ import annotations

import torch
from torch import nn

from cipherward.site_agent.tasks.base import Records, Task
from cipherward.site_agent.training import weights
from cipherward.site_agent.training.metrics import one_a_record

_RECORDS = 4
_LOUD = 100.0
_TOLERANCE = 1e-3


def mixes_records(task: Task, model: nn.Module, records: Records) -> bool:
    """Whether what the model, the loss or the correctness makes of a record depends on the others in its batch.

    Tried on made-up records of the shape of ``records``, whose values are not looked at, and with the weights moved,
    as a layer that begins at zero shows nothing; weights and mode are as before afterwards. So a dependence that
    needs particular records is not found. Raises UsageError if the task gives not one loss a record.
    """
    device = next(model.parameters()).device
    parameters = weights.trainable_parameters(model)
    before = [parameter.detach().clone() for parameter in parameters]
    training = model.training
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        try:
            for parameter in parameters:
                parameter.add_(0.1 * torch.randn_like(parameter))
            features = made_up(records.features, _RECORDS, device)
            others = features.clone()
            others[1:] = made_up(records.features, _RECORDS, device)[1:]
            if others.is_floating_point():
                others[1:] *= _LOUD
            labels = torch.zeros(
                _RECORDS, *records.labels.shape[1:], dtype=records.labels.dtype, device=device
            )
            other_labels = labels.clone()
            other_labels[1:] = 1
            for mode in (True, False):
                model.train(mode)
                one = _of_the_first(task, model, features, labels)
                other = _of_the_first(task, model, others, other_labels)
                if not all(map(_alike, one, other)):
                    return True
            return False
        finally:
            model.train(training)
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)


def made_up(like: torch.Tensor, count: int, device: torch.device) -> torch.Tensor:
    """So many random records of the type and shape of those in ``like``, whose values are not looked at."""
    shape = (count, *like.shape[1:])
    if like.is_floating_point():
        return torch.rand(shape, dtype=like.dtype, device=device)
    # Of other whole numbers nothing is known but that a table has rows 0 and 1.
    most = 256 if like.dtype == torch.uint8 else 2
    return torch.randint(0, most, shape, device=device).to(like.dtype)


def _of_the_first(
    task: Task, model: nn.Module, features: torch.Tensor, labels: torch.Tensor
) -> list[torch.Tensor]:
    """What comes out for the first record. Dropout gives the same every time."""
    torch.manual_seed(1)
    outputs = model(features)
    loss = one_a_record(task.loss(outputs, labels), _RECORDS, task, "loss")
    correct = one_a_record(task.correct(outputs, labels), _RECORDS, task, "correctness")
    return [values[0].double() for values in (outputs, loss, correct)]


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    # Not bit for bit: a kernel may round differently beside other numbers.
    return torch.allclose(one, other, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True)
