"""Clipped sums of per-patient gradients on one site's records, by the fastest way that the model allows.

Which way is fixed by the model and by how many records patients have, never by what is in them: closed form for one
linear layer, else one backward pass (``ghost``) where the layers are known, else Opacus's hooks. Measured on one CPU
thread of a busy machine, a clipped sum as a multiple of a step without privacy, with 1 and 4 records a patient:

                                        this way           hooks              torch's vmap
    linear head, 1,280 features, 1,024  1.0-1.5, 2.0-2.8   5.9-9.9, 4.9-5.8   8.3-14, 3.5-5.2
    small CNN, 28 x 28, 64              1.5, 1.5           1.9, 1.7           2.1, 1.9
    ResNet-18, 224 x 224, 8             1.3, 1.6           2.6, 1.9           1.8, 1.8

The hooks know every model that Opacus does, so they stay for the rest; vmap is nowhere the fastest.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.validators import ModuleValidator

from cipherward.errors import UsageError
from cipherward.site_agent.tasks.base import Records, Task
from cipherward.site_agent.training import weights
from cipherward.site_agent.training.forward import losses
from cipherward.site_agent.training.ghost import Ghost
from cipherward.site_agent.training.head import Head
from cipherward.site_agent.training.hooks import Hooks
from cipherward.site_agent.training.layers import Slots
from cipherward.site_agent.training.separation import mixes_records

_GRADIENT_VALUES = 1 << 25
"""Float32 values of per-sample (and of per-patient) gradients held at a time: 128 MB each."""
_ACTIVATION_VALUES = {"cpu": 1 << 28, "cuda": 1 << 31}
"""Float32 values that the layers of a batch hold at a time: 1 GB, and 8 GB on a GPU."""


class PatientGradients:
    """Per-patient gradients of one model on one site's records."""

    def __init__(self, task: Task, model: torch.nn.Module, records: Records, device: torch.device) -> None:
        """Raises UsageError if the model has layers whose gradient is not a sum over records."""
        problems = ModuleValidator.validate(model.train(), strict=False)
        if problems:
            raise UsageError(
                f"the model of task {task.name!r} cannot be trained privately",
                why=str(problems[0]).splitlines()[0],
            )
        if mixes_records(task, model, records):
            raise UsageError(
                f"the task {task.name!r} cannot be trained privately",
                why="what it makes of a record depends on the other records of its batch",
                fix="Normalise within a record, as GroupNorm does, and weight losses by constants",
            )
        self._task = task
        self._model = model
        self._parameters = weights.trainable_parameters(model)
        self._size = weights.count(model)
        self._device = device
        self._records = records
        self._hooks = Hooks(task, model)
        self._ghost = Ghost.for_model(task, model, records.features)
        names = records.patients
        index = {name: number for number, name in enumerate(names)}
        owner = np.array([index[name] for name in records.patient_ids], dtype=np.int64)
        # A patient's records, wherever they stand in the file: order[offset[i] : offset[i + 1]].
        self._order = np.argsort(owner, kind="stable")
        self._offset = np.searchsorted(owner[self._order], np.arange(len(names) + 1))
        self.patients = len(names)
        self._one_each = self.patients == len(owner)
        self._head = (
            Head(task, model, records.features)
            if self._one_each and isinstance(model, torch.nn.Linear) and Head.fits(model, records.features)
            else None
        )

    def clipped_sum(self, chosen: NDArray[np.int64], clip_norm: float | None) -> tuple[torch.Tensor, int]:
        """The sum over the chosen patients' gradients, each scaled to an L2 norm of at most ``clip_norm``.

        ``chosen``: patient numbers, in the order of ``Records.patients``; ``clip_norm`` None: no clipping.
        Returns the sum, (P,), float64, and how many patients' gradients were not finite: they count as zero,
        as otherwise one NaN would betray its patient.
        """
        if clip_norm is None:
            plain = self._sum(chosen)
            if plain.isfinite().all():
                return plain, 0
            clip_norm = float("inf")
        total: torch.Tensor | None = None
        dropped = 0
        ghost = self._ghost
        for group, places in self._groups(chosen):
            if places is None or ghost is None:
                part, lost = self._clipped_by_hooks(group, clip_norm)
            else:
                part, lost = self._clipped_by_ghost(ghost, group, places, clip_norm)
            total = part if total is None else total.add_(part)
            dropped += lost
        if total is None:
            total = torch.zeros(self._size, dtype=torch.float64, device=self._device)
        return total, dropped

    def weights(self) -> torch.Tensor:
        """As they are now, (P,), float64."""
        return torch.cat([parameter.detach().reshape(-1).double() for parameter in self._parameters])

    def step(self, move: torch.Tensor) -> None:
        """Subtract ``move``, (P,), from the weights."""
        start = 0
        with torch.no_grad():
            for parameter in self._parameters:
                part = move[start : start + parameter.numel()]
                parameter.sub_(part.reshape(parameter.shape).to(parameter.dtype))
                start += parameter.numel()

    def _groups(self, chosen: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], int | None]]:
        """Patients that fit into memory together, and the largest number of records that one of them has; None where
        a patient has so many that their gradients must be added up record by record."""
        by_hooks = max(1, _GRADIENT_VALUES // self._size)
        if self._ghost is None:
            yield from ((group, None) for group in _pieces(chosen, by_hooks))
            return
        room = max(1, _ACTIVATION_VALUES[self._device.type] // max(1, self._ghost.values))
        if self._one_each:
            yield from ((group, 1) for group in _pieces(chosen, room))
            return
        counts = self._offset[chosen + 1] - self._offset[chosen]
        # Patients of about as many records together, as all get the places of the largest.
        power = np.ceil(np.log2(counts)).astype(np.int64)
        for number in np.unique(power):
            alike = chosen[power == number]
            places = int(counts[power == number].max())
            if places > room:
                yield from ((group, None) for group in _pieces(alike, by_hooks))
            else:
                yield from ((group, places) for group in _pieces(alike, room // places))

    def _batch(self, rows: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        # Five times as fast as indexing with a tensor.
        batch = torch.from_numpy(rows)
        features, labels = (
            torch.index_select(values, 0, batch) for values in (self._records.features, self._records.labels)
        )
        return features.to(self._device), labels.to(self._device)

    def _to_device(self, numbers: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(numbers).to(self._device)

    def _rows(self, group: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The group's records, patient by patient, and how many each has."""
        if self._one_each:
            return self._order[group], np.ones_like(group)
        starts, counts = self._offset[group], self._offset[group + 1] - self._offset[group]
        first = np.cumsum(counts) - counts
        return self._order[np.arange(counts.sum()) + np.repeat(starts - first, counts)], counts

    def _sum(self, chosen: NDArray[np.int64]) -> torch.Tensor:
        """Without clipping: (P,), float64, not finite where a gradient is not."""
        total = torch.zeros(self._size, dtype=torch.float64, device=self._device)
        rows, _ = self._rows(chosen)
        room = _GRADIENT_VALUES // max(1, self._records.features[:1].numel())
        if self._ghost is not None:
            room = _ACTIVATION_VALUES[self._device.type] // max(1, self._ghost.values)
        for batch in _pieces(rows, max(1, room)):
            loss = losses(self._task, self._model, *self._batch(batch)).sum()
            gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True, materialize_grads=True)
            total += torch.cat([gradient.reshape(-1) for gradient in gradients])
        return total

    def _clipped_by_ghost(
        self, ghost: Ghost, group: NDArray[np.int64], places: int, clip_norm: float
    ) -> tuple[torch.Tensor, int]:
        rows, counts = self._rows(group)
        slots = Slots(len(group))
        if places > 1:
            owner = np.repeat(np.arange(len(group)), counts)
            place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
            slots = Slots(len(group), places, self._to_device(owner), self._to_device(place))
        if self._head is None:
            total, norms = ghost.clipped_sum(*self._batch(rows), slots, clip_norm)
        else:
            total, norms = self._head.clipped_sum(torch.from_numpy(rows), *self._batch(rows), clip_norm)
        finite = norms.isfinite()
        if finite.all():
            return total, 0
        # A weight of zero does not undo a NaN: the others once more, without these patients.
        rest = group[finite.cpu().numpy()]
        again, lost = self.clipped_sum(rest, clip_norm)
        return again, len(group) - len(rest) + lost

    def _clipped_by_hooks(self, group: NDArray[np.int64], clip_norm: float) -> tuple[torch.Tensor, int]:
        rows, counts = self._rows(group)
        owner = self._to_device(np.repeat(np.arange(len(group)), counts))
        gradients = torch.zeros(len(group), self._size, device=self._device)
        for piece in _pieces(np.arange(len(rows)), max(1, _GRADIENT_VALUES // self._size)):
            per_record = self._hooks.per_record(*self._batch(rows[piece]))
            gradients.index_add_(0, owner[piece[0] : piece[-1] + 1], per_record)
        norms = torch.linalg.vector_norm(gradients, dim=1, dtype=torch.float64)
        finite = norms.isfinite()
        dropped = int((~finite).sum())
        if dropped:
            gradients[~finite] = 0.0
            norms = norms.masked_fill(~finite, 0.0)
        factors = (clip_norm / norms).clamp_(max=1.0).float()  # a norm of zero gives infinity, clamped to 1
        return (factors @ gradients).double(), dropped


def _pieces(numbers: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]
