"""Ways in which training could be broken and still run: each is put into the path, and must be caught by what its
row names. The product has no switch for any of them; they replace functions of the loaded module."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cipherward.crypto.randomness import KeyStream
from cipherward.evaluation.privacy_audit.audit import audit
from cipherward.evaluation.privacy_audit.checks import CHECKS
from cipherward.evaluation.privacy_audit.path import CLIP_NORM, Setting
from cipherward.site_agent.training import dpsgd, jobs, noise
from cipherward.site_agent.training.gradients import PatientGradients
from cipherward.site_agent.training.noise import Noise, gaussian_mechanism

AUDIT = "audit"


@dataclass(frozen=True, slots=True)
class Mutant:
    """``changes``: what replaces what, as (module, name, value). ``caught_by``: AUDIT or one of ``checks.CHECKS``."""

    name: str
    title: str
    caught_by: str
    changes: Callable[[], list[tuple[Any, str, Any]]]


@dataclass(frozen=True, slots=True)
class Caught:
    """``figure`` against what is allowed (``low`` to ``high``): outside, the mutant is caught."""

    mutant: str
    by: str
    figure: float
    low: float
    high: float

    @property
    def caught(self) -> bool:
        """Whether it shows."""
        return not self.low <= self.figure <= self.high


@contextmanager
def broken(mutant: Mutant) -> Iterator[None]:
    """The sites' training path with this mutant in it, in this process and not for several threads."""
    with ExitStack() as undo:
        for owner, name, value in mutant.changes():
            undo.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        yield


def catch(
    mutant: Mutant, setting: Setting, *, canaries: int = 1000, delta: float = 1e-5, seed: int = 0
) -> Caught:
    """Break the path and let what should see it look."""
    with broken(mutant):
        if mutant.caught_by == AUDIT:
            found = audit(setting, canaries=canaries, delta=delta, seed=seed)
            return Caught(mutant.name, AUDIT, found.proved, 0.0, found.claimed)
        check = CHECKS[mutant.caught_by](setting)
    return Caught(mutant.name, check.name, check.figure, check.low, check.high)


def _noise(owner: Any, factor: float) -> Callable[[], list[tuple[Any, str, Any]]]:
    def changed(exact: torch.Tensor, standard_deviation: float, source: Noise) -> torch.Tensor:
        if factor == 0:
            return exact
        return gaussian_mechanism(exact, factor * standard_deviation, source)

    return lambda: [(owner, "gaussian_mechanism", changed)]


class _Unclipped(PatientGradients):
    def clipped_sum(self, chosen: NDArray[np.int64], clip_norm: float | None) -> tuple[torch.Tensor, int]:
        return super().clipped_sum(chosen, None)


class _Shuffled(PatientGradients):
    """Batches of one size, patient by patient through a shuffled list."""

    def clipped_sum(self, chosen: NDArray[np.int64], clip_norm: float | None) -> tuple[torch.Tensor, int]:
        order = np.random.default_rng().permutation(self.patients)
        return super().clipped_sum(order[: round(self.patients / 4)], clip_norm)


class _Hasty(PatientGradients):
    """Twice as many patients as the sampling rate says."""

    def clipped_sum(self, chosen: NDArray[np.int64], clip_norm: float | None) -> tuple[torch.Tensor, int]:
        others = np.setdiff1d(np.arange(self.patients), chosen)
        more = np.random.default_rng().permutation(others)[: len(chosen)]
        return super().clipped_sum(np.sort(np.concatenate([chosen, more])), clip_norm)


class _ClippedAfterNoise(PatientGradients):
    """The noise is added to what is not clipped yet, and clipping then takes it away again."""

    def clipped_sum(self, chosen: NDArray[np.int64], clip_norm: float | None) -> tuple[torch.Tensor, int]:
        total, dropped = super().clipped_sum(chosen, None)
        total = total + CLIP_NORM * torch.randn_like(total)
        norm = float(torch.linalg.vector_norm(total))
        return total * min(1.0, (clip_norm or math.inf) / norm), dropped


MUTANTS = (
    Mutant("no-noise", "the noise is left out", AUDIT, _noise(dpsgd, 0.0)),
    Mutant("half-noise", "half the noise", "standard-deviation", _noise(dpsgd, 0.5)),
    Mutant(
        "half-metrics-noise",
        "half the noise on the metrics",
        "metrics-standard-deviation",
        _noise(noise, 0.5),
    ),
    Mutant(
        "twice-the-rate",
        "twice as many patients are drawn",
        "sampling-rate",
        lambda: [(dpsgd, "PatientGradients", _Hasty)],
    ),
    Mutant(
        "no-clipping", "gradients are not clipped", AUDIT, lambda: [(dpsgd, "PatientGradients", _Unclipped)]
    ),
    Mutant(
        "clipping-after-noise",
        "the noise is added before clipping",
        "standard-deviation",
        lambda: [
            (dpsgd, "PatientGradients", _ClippedAfterNoise),
            (dpsgd, "gaussian_mechanism", lambda exact, standard_deviation, source: exact),
        ],
    ),
    Mutant(
        "shuffled",
        "batches of one size in the place of Poisson sampling",
        "poisson",
        lambda: [(dpsgd, "PatientGradients", _Shuffled)],
    ),
    Mutant(
        "reused-seed",
        "every round draws the same noise",
        "fresh-noise",
        lambda: [(jobs, "KeyStream", lambda: KeyStream(bytes(32)))],
    ),
)
