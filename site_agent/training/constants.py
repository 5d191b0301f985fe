"""The constants of a training round. They come from the signed study manifest and never from the data: a
sampling rate or divisor computed from the number of patients would tell that number."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from cipherward.crypto.shared_noise import NOISE_ROOM
from cipherward.errors import FormatError, UsageError

_MAX_STEPS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SgdConstants:
    """What all kinds of training share. Use one of the subclasses: privacy is never off by default.

    ``sampling_rate``: each patient's chance to be in a step, in (0, 1]. ``divisor``: what a step's sum of
    gradients is divided by (the expected batch, in patients). ``loss_bound``: for the metrics, a patient's
    loss is clipped to [0, loss_bound]. ``metrics_scale``: metrics are divided by it before encryption (about
    the number of patients of a large site, so that they lie near [0, 1]). Raises UsageError for values out of
    range.
    """

    kind: ClassVar[str]
    may_be_zero: ClassVar[frozenset[str]] = frozenset()
    sampling_rate: float
    steps: int
    divisor: float
    learning_rate: float
    loss_bound: float
    metrics_scale: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value == 0 and field.name in self.may_be_zero:
                continue
            if not math.isfinite(value) or value <= 0:
                raise UsageError(f"the training constant {field.name} is {value}", why="it must be positive")
        if self.sampling_rate > 1:
            raise UsageError(f"a sampling rate of {self.sampling_rate} is not a probability")
        if self.steps != int(self.steps) or self.steps > _MAX_STEPS:
            raise UsageError(f"{self.steps} steps", why=f"it must be a whole number up to {_MAX_STEPS}")

    def to_json(self) -> dict[str, Any]:
        """For ``from_json``."""
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class DpSgd(SgdConstants):
    """Differentially private: per-patient clipping to ``clip_norm`` (L2), noise ``noise_multiplier`` x
    clip_norm on every coordinate of every step's sum, noise ``metrics_noise_multiplier`` x sensitivity on the
    metrics. ``proximal``: mu of FedProx (Li et al., MLSys 2020), each step also pulls the weights back to
    those that the round began with; 0 is FedAvg."""

    kind = "dp-sgd"
    may_be_zero = frozenset({"proximal"})
    clip_norm: float
    noise_multiplier: float
    metrics_noise_multiplier: float
    proximal: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainSgd(SgdConstants):
    """No clipping, no noise, exact metrics: no privacy. For baselines, and studies whose sites all agreed to
    it. ``proximal`` as in DpSgd."""

    kind = "plain-sgd"
    may_be_zero = frozenset({"proximal"})
    proximal: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedNoise(SgdConstants):
    """One step of DP-SGD over all hospitals (``dp-fedsgd``): a site adds a share of the noise, and no fewer
    than ``honest`` shares, by sites that do not collude, make up the whole: a standard deviation of
    ``noise_multiplier`` x clip_norm a coordinate. Nothing is released but the sum.

    ``honest``: h >= 1, the minimum cohort less the colluders withstood. ``noise_range``: what a site uploads
    reaches from -noise_range to +noise_range standard deviations of its share, scaled to [-1, 1]. ``steps``
    is 1. The metrics' noise is shared in the same way. ``divisor`` and ``learning_rate`` are for the step that
    the sites take with the sum: training itself moves no weights.
    """

    kind = "dp-fedsgd"
    clip_norm: float
    noise_multiplier: float
    metrics_noise_multiplier: float
    honest: float
    noise_range: float

    def __post_init__(self) -> None:
        # slots=True makes a new class, which the zero-argument super() would not find.
        SgdConstants.__post_init__(self)
        if self.steps != 1:
            raise UsageError(f"{self.steps} steps of shared noise", why="a round is one step over all sites")
        if self.noise_range <= NOISE_ROOM:
            raise UsageError(
                f"the constant noise_range is {self.noise_range}",
                why=f"an upload must have room for {NOISE_ROOM:g} standard deviations of noise, and more",
            )
        if self.honest < 1:
            raise UsageError(
                f"the noise is shared by {self.honest} honest sites", why="at least one must be honest"
            )

    @property
    def noise_share(self) -> float:
        """u: the standard deviation of one site's noise on each coordinate of its sum of gradients."""
        return self.noise_multiplier * self.clip_norm / math.sqrt(self.honest)

    @property
    def metrics_noise_share(self) -> float:
        """The standard deviation of one site's noise on a metric, in units of the metrics' sensitivity."""
        return self.metrics_noise_multiplier / math.sqrt(self.honest)


TrainingConstants = DpSgd | PlainSgd | SharedNoise


def from_json(value: object) -> TrainingConstants:
    """The inverse of ``to_json``. Raises FormatError."""
    if not isinstance(value, dict):
        raise FormatError("training constants are not a JSON object")
    kinds: dict[object, type[DpSgd] | type[PlainSgd] | type[SharedNoise]] = {
        kind.kind: kind for kind in (DpSgd, PlainSgd, SharedNoise)
    }
    kind = kinds.get(value.get("kind"))
    numbers = {name: number for name, number in value.items() if name != "kind"}
    if kind is None or set(numbers) != {field.name for field in fields(kind)}:
        raise FormatError("training constants have unknown or missing fields")
    if not all(isinstance(number, int | float) for number in numbers.values()):
        raise FormatError("a training constant is not a number")
    return kind(**numbers)
