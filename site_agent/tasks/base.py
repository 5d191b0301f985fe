"""What a learning task must provide. Hospitals install tasks as plug-ins and pin them by digest; the
coordinator can never send code. Importing this module does not load torch: the daemon reads names and
digests, and only the trainer's child processes build models.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

from cipherward.errors import UsageError
from cipherward.site_agent.patient_ids import canonical

if TYPE_CHECKING:
    import torch
    from torch import nn


class Split(StrEnum):
    """Which of a site's patients to load. Test patients never take part in training."""

    TRAIN = "train"
    TEST = "test"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class Records:
    """A site's data: n records of some number of patients.

    ``features``: (n, ...) whatever the task's model takes. ``labels``: (n,) or (n, ...) as its loss takes.
    ``patient_ids``: n strings; a patient may have many records, and it is the patient who is protected. They are
    brought to the ledger's spelling: a patient in two spellings would be clipped as two, and charged as one.
    Raises UsageError if the lengths differ or an id is empty.
    """

    features: torch.Tensor
    labels: torch.Tensor
    patient_ids: tuple[str, ...]

    def __post_init__(self) -> None:
        counts = (len(self.features), len(self.labels), len(self.patient_ids))
        if len(set(counts)) != 1:
            raise UsageError(
                "the task loaded records that do not fit together",
                why=f"there are {counts[0]} features, {counts[1]} labels and {counts[2]} patient ids",
            )
        object.__setattr__(self, "patient_ids", tuple(map(canonical, self.patient_ids)))
        if not all(self.patient_ids):
            raise UsageError(
                "the task loaded a record without a patient id",
                why="privacy is per patient, so every record must belong to one",
            )

    @property
    def patients(self) -> tuple[str, ...]:
        """Each patient once, sorted."""
        return tuple(sorted(set(self.patient_ids)))


class Task(ABC):
    """A learning problem: model, data, loss, metrics. Entry-point group ``cipherward.tasks``.

    A task has no state and no constructor arguments. Modules of a task import torch inside the methods.
    """

    name: ClassVar[str]
    """The entry point's name, a DNS label."""

    @abstractmethod
    def model(self) -> nn.Module:
        """A new model. Its parameters' names, shapes and order never vary; it has no buffers.

        Initial values may be random: they come from torch's global generator, which the caller seeds.
        """

    @abstractmethod
    def load(self, source: str, split: Split) -> Records:
        """The records of ``source``: a path or whatever else the task documents.

        The same source and split give the same records in the same order. Preprocessing must use public
        constants only: a mean taken over the data would be a release outside the ledger.
        Raises EnvironmentProblem if the source cannot be read, UsageError if it is malformed.
        """

    @abstractmethod
    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss of each record, without reduction: (n, ...) outputs, labels -> (n,) >= 0."""

    @abstractmethod
    def correct(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Whether each record is predicted right: (n,) in [0, 1]."""

    def scores(self, outputs: torch.Tensor) -> torch.Tensor | None:
        """For binary tasks, how much each record looks like label 1: (n,), any scale; AUC is made from it.

        None (the default) for tasks that are not binary: they get no AUC.
        """
        return None


class BinaryTask(Task):
    """A task with labels 0 and 1 and a model with one logit a record: outputs (n, 1) or (n,)."""

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy in nats."""
        from torch.nn.functional import binary_cross_entropy_with_logits

        return binary_cross_entropy_with_logits(
            outputs.reshape(len(labels)), labels.to(outputs.dtype), reduction="none"
        )

    def correct(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Whether the logit's sign agrees with the label."""
        return (outputs.reshape(len(labels)) > 0) == (labels > 0)

    def scores(self, outputs: torch.Tensor) -> torch.Tensor | None:
        """The logit."""
        return outputs.reshape(-1)
