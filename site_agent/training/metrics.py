"""What a site may say about how well the model does. During a study: three noisy sums over its training
patients, charged to the ledger, encrypted like the update. For its own eyes: exact figures on test
patients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cipherward.crypto.shared_noise import NOISE_ROOM
from cipherward.errors import FormatError, UsageError
from cipherward.site_agent.training.constants import DpSgd, SgdConstants, SharedNoise

if TYPE_CHECKING:
    import torch
    from torch import nn

    from cipherward.crypto.randomness import KeyStream
    from cipherward.site_agent.tasks.base import Records, Task

METRICS = 3
SENSITIVITY = math.sqrt(3)
"""L2, of adding or removing one patient: each of (loss / loss_bound, correct, 1) lies in [0, 1]."""
_BATCH = 1024


@dataclass(frozen=True, slots=True)
class FederatedMetrics:
    """Over all patients of the contributing sites: mean loss (each clipped to loss_bound), accuracy, number
    of patients; all three noisy, so none is meaningful for a handful of patients."""

    loss: float
    accuracy: float
    patients: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Exact figures over ``records`` records of ``patients`` patients: they stay at the hospital. ``loss`` is
    the mean, in the task's unit; ``auc`` is None where the task is not binary or only one label occurs."""

    records: int
    patients: int
    loss: float
    accuracy: float
    auc: float | None


def federated(
    task: Task, model: nn.Module, records: Records, constants: SgdConstants, stream: KeyStream
) -> NDArray[np.float64]:
    """(loss / loss_bound, correct, 1) of each patient, summed, noised, divided by metrics_scale. Shape (3,).

    A patient's loss and correctness are means over the patient's records, each record's loss clipped to
    [0, loss_bound] (not a number counts as loss_bound). With DpSgd, noise of metrics_noise_multiplier x
    SENSITIVITY is added: a Gaussian mechanism over all patients. With SharedNoise it is one site's share, and sums that
    would not fit into an upload with it are cut before it (see ``dpsgd``): a site with more patients than that counts
    as one with fewer.
    """
    losses, correct, _ = _predict(task, model, records)
    patient_of = {patient: index for index, patient in enumerate(records.patients)}
    owner = np.array([patient_of[patient] for patient in records.patient_ids], dtype=np.int64)
    per_patient = np.bincount(owner, minlength=len(patient_of))
    right = np.clip(np.nan_to_num(correct, nan=0.0), 0.0, 1.0)
    bounded = np.clip(np.nan_to_num(losses, nan=np.inf), 0.0, constants.loss_bound) / constants.loss_bound
    sums = np.array([
        (np.bincount(owner, bounded, len(patient_of)) / per_patient).sum(),
        (np.bincount(owner, right, len(patient_of)) / per_patient).sum(),
        len(patient_of),
    ])  # fmt: skip
    scaled: NDArray[np.float64] = _noised(sums, constants, stream) / constants.metrics_scale
    return scaled


def _noised(sums: NDArray[np.float64], constants: SgdConstants, stream: KeyStream) -> NDArray[np.float64]:
    """The sums with the noise that the constants ask for."""
    if isinstance(constants, DpSgd):
        multiplier = constants.metrics_noise_multiplier
    elif isinstance(constants, SharedNoise):
        multiplier = constants.metrics_noise_share
        most = constants.metrics_scale - NOISE_ROOM * multiplier * SENSITIVITY
        sums = np.minimum(sums, max(0.0, most))
    else:
        return sums
    import torch

    from cipherward.site_agent.training.noise import gaussian_mechanism, noise_on

    noise = noise_on(torch.device("cpu"), stream)  # where the sums are
    return gaussian_mechanism(torch.from_numpy(sums), multiplier * SENSITIVITY, noise).numpy()


def decode(sums: NDArray[np.float64], constants: SgdConstants) -> FederatedMetrics:
    """From the opened sum of the sites' ``federated`` vectors, shape (3,). Raises FormatError for others.

    Where noise left fewer than one patient, loss and accuracy are NaN.
    """
    if sums.shape != (METRICS,):
        raise FormatError(f"metrics have shape {sums.shape}", why=f"there are {METRICS}")
    loss, correct, patients = (float(value) * constants.metrics_scale for value in sums)
    if patients < 1:
        return FederatedMetrics(math.nan, math.nan, patients)
    return FederatedMetrics(
        loss=max(0.0, loss / patients) * constants.loss_bound,
        accuracy=min(1.0, max(0.0, correct / patients)),
        patients=patients,
    )


def evaluate(task: Task, model: nn.Module, records: Records) -> Evaluation:
    """Exact loss, accuracy and AUC. Raises UsageError for no records."""
    if not records.patient_ids:
        raise UsageError("there are no records to evaluate on")
    losses, correct, scores = _predict(task, model, records)
    return Evaluation(
        records=len(losses),
        patients=len(records.patients),
        loss=float(losses.mean()),
        accuracy=float(correct.mean()),
        auc=None if scores is None else auc(records.labels.cpu().numpy() > 0, scores),
    )


def auc(positive: NDArray[np.bool_], scores: NDArray[np.float64]) -> float | None:
    """The area under the ROC curve: the chance that a positive scores above a negative, ties counting half
    (Mann-Whitney). None if there is no positive, no negative, or a score is not a number."""
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if positives == 0 or negatives == 0 or not np.isfinite(scores).all():
        return None
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mid_rank = np.cumsum(counts) - (counts - 1) / 2
    rank_sum = float(mid_rank[inverse][positive].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def one_a_record(values: torch.Tensor, records: int, task: Task, what: str) -> torch.Tensor:
    """The values, if there is one a record; raises UsageError otherwise (the task has reduced them)."""
    if values.shape != (records,):
        raise UsageError(
            f"the {what} of task {task.name!r} has shape {tuple(values.shape)}",
            why=f"for {records} records it must be ({records},), one {what} a record",
        )
    return values


def _predict(
    task: Task, model: nn.Module, records: Records
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64] | None]:
    """Loss, correctness and score of each record, in evaluation mode, without gradients."""
    import torch

    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    losses, corrects, scores = [], [], []
    with torch.no_grad():
        for start in range(0, len(records.patient_ids), _BATCH):
            labels = records.labels[start : start + _BATCH].to(device)
            outputs = model(records.features[start : start + _BATCH].to(device))
            n = len(labels)
            losses.append(_numpy(one_a_record(task.loss(outputs, labels), n, task, "loss")))
            corrects.append(_numpy(one_a_record(task.correct(outputs, labels), n, task, "correctness")))
            score = task.scores(outputs)
            if score is not None:
                scores.append(_numpy(one_a_record(score, n, task, "score")))
    model.train(was_training)
    none = np.zeros(0)
    return (
        np.concatenate(losses or [none]),
        np.concatenate(corrects or [none]),
        np.concatenate(scores) if scores else None,
    )


def _numpy(values: torch.Tensor) -> NDArray[np.float64]:
    return values.double().cpu().numpy()
