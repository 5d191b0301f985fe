"""What a sequence of noisy releases costs in differential privacy.

Privacy is a history of events. Its (epsilon, delta) guarantee, under adding or removing one patient, is
computed from privacy loss distributions (PLDs) by Google's dp_accounting, discretised pessimistically by
"connect the dots" (Doroshenko et al., PoPETs 2022, arXiv 2207.04380), so that every number here is an upper
bound. Where a history costs far more than any hospital would allow, Renyi accounting (Mironov 2017; Mironov,
Talwar and Zhang 2019) answers instead: also an upper bound, in milliseconds, and of bounded memory.

dp_accounting brings scipy.stats, about 70 MB: it is imported on the first computation, or by ``load``. A
process that must stay small uses ``accountant.ServedAccountant``.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cipherward.errors import BudgetError, UsageError

MIN_DELTA = 1e-10
"""Below it, the float64 convolutions would say little."""

_INTERVAL = 1e-4  # of the discretised loss; dp_accounting's own default, so that anyone can recompute
_PLD_UP_TO = 100.0  # above this RDP epsilon the PLD's arrays grow large, for a number nobody could accept
_PLD_SIGMA_FROM = 0.3  # below this noise already one step's PLD is large (its width grows as 1/sigma^2)
_FFT_ERROR = 1e-15  # absolute error in delta that each step of an FFT power may add; taken off delta first
_ORDERS = (*range(2, 64), *range(64, 128, 4), *range(128, 257, 16), 320, 384, 512, 768, 1024)
_MAX_SIGMA = 1e6
_MIN_SIGMA = 1e-3  # one release with less costs an epsilon above 1e5: counted as no noise at all


def _check_noise(value: float) -> None:
    if not 0 <= value <= _MAX_SIGMA:
        raise UsageError(f"a noise multiplier of {value} is not between 0 and {_MAX_SIGMA:g}")


def _check_count(value: int, name: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 2**53:
        raise UsageError(f"{value!r} {name} is not a whole number from 1 to 2^53")


@dataclass(frozen=True, slots=True, order=True)
class SampledGaussian:
    """``steps`` releases of a clipped sum, each patient in it with probability ``sampling_rate``.

    Poisson sampling; noise of standard deviation ``noise_multiplier`` x clipping norm on each coordinate.
    Raises UsageError for values outside 0 <= noise_multiplier <= 1e6, 0 < sampling_rate <= 1, steps >= 1.
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int

    def __post_init__(self) -> None:
        _check_noise(self.noise_multiplier)
        if not 0 < self.sampling_rate <= 1:
            raise UsageError(f"a sampling rate of {self.sampling_rate} is not a probability above 0")
        _check_count(self.steps, "steps")


@dataclass(frozen=True, slots=True, order=True)
class Gaussian:
    """``count`` releases over all patients, noise of ``noise_multiplier`` x sensitivity on each coordinate.

    A noise multiplier of 0 is a release without privacy. Raises UsageError for values out of range.
    """

    noise_multiplier: float
    count: int = 1

    def __post_init__(self) -> None:
        _check_noise(self.noise_multiplier)
        _check_count(self.count, "count")


PrivacyEvent = SampledGaussian | Gaussian
NO_PRIVACY = (Gaussian(0.0),)
"""The cost of a round that trains without differential privacy."""


def merged(events: Iterable[PrivacyEvent]) -> tuple[PrivacyEvent, ...]:
    """The same composition in its shortest form, in a fixed order: equal histories give equal tuples.

    Steps of equal sampled Gaussians add up; any number of Gaussians is one Gaussian exactly (their inverse
    variances add); sampling everybody is not sampling.
    """
    sampled: dict[tuple[float, float], int] = {}
    whole: list[tuple[float, int]] = []
    for event in events:
        if isinstance(event, Gaussian):
            whole.append((event.noise_multiplier, event.count))
        elif event.sampling_rate == 1:
            whole.append((event.noise_multiplier, event.steps))
        else:
            key = (event.noise_multiplier, event.sampling_rate)
            sampled[key] = sampled.get(key, 0) + event.steps
    out: list[PrivacyEvent] = [SampledGaussian(*key, steps) for key, steps in sorted(sampled.items())]
    if any(sigma < _MIN_SIGMA for sigma, _ in whole):
        out.append(Gaussian(0.0))
    elif whole:
        # fsum is exact up to one rounding, so the order of the history does not show.
        out.append(Gaussian(math.fsum(count / sigma**2 for sigma, count in whole) ** -0.5))
    return tuple(out)


def epsilon(events: Iterable[PrivacyEvent], delta: float) -> float:
    """An upper bound on epsilon at ``delta`` for adding or removing one patient in all of ``events``.

    0.0 for no events, ``math.inf`` if a release had no noise. Never decreases as events are added.
    Raises UsageError unless MIN_DELTA <= delta < 1.
    """
    check_delta(delta)
    history = merged(events)
    if not history:
        return 0.0
    if any(event.noise_multiplier < _MIN_SIGMA for event in history):
        return math.inf
    return _epsilon(history, delta)


def load() -> None:
    """Import what computes, now; for a server whose children are to have it."""
    import dp_accounting.pld.privacy_loss_distribution
    import dp_accounting.rdp  # noqa: F401


def check_delta(delta: float) -> None:
    """Raises UsageError unless MIN_DELTA <= delta < 1."""
    if not MIN_DELTA <= delta < 1:
        raise UsageError(f"delta = {delta} cannot be used", why=f"it must be at least {MIN_DELTA}, below 1")


def repeated(events: Iterable[PrivacyEvent], times: int) -> tuple[PrivacyEvent, ...]:
    """The same events so many times over, without a long list. Raises UsageError beyond 2^53 steps."""
    out: list[PrivacyEvent] = []
    for event in events:
        if isinstance(event, Gaussian):
            out.append(Gaussian(event.noise_multiplier, event.count * times))
        else:
            out.append(SampledGaussian(event.noise_multiplier, event.sampling_rate, event.steps * times))
    return tuple(out)


def check_round(per_round: Sequence[PrivacyEvent]) -> None:
    """Raises UsageError for a round that would cost nothing."""
    if not per_round:
        raise UsageError("a round without privacy events has no cost to count with")


def rounds_left(
    spent: Iterable[PrivacyEvent],
    per_round: Sequence[PrivacyEvent],
    ceiling: float,
    delta: float,
    *,
    limit: int = 10_000,
) -> int:
    """How many more rounds of ``per_round`` fit under ``ceiling`` after ``spent``; at most ``limit``.

    Raises UsageError if ``per_round`` is empty or delta out of range.
    """
    check_delta(delta)
    check_round(per_round)
    history = merged(spent)

    def after(rounds: int) -> tuple[PrivacyEvent, ...]:
        return merged([*history, *repeated(per_round, rounds)])

    if epsilon(after(1), delta) > ceiling:
        return 0
    if epsilon(after(limit), delta) <= ceiling:
        return limit
    # RDP is cheap and never too low: where it ends is a close start.
    low, high = 1, limit
    while low * 2 < limit and _rdp_epsilon(after(low * 2), delta) <= ceiling:
        low *= 2
    while low * 2 < high and epsilon(after(low * 2), delta) <= ceiling:
        low *= 2
    return _last_within(
        lambda rounds: epsilon(after(rounds), delta), ceiling, low, min(2 * low, high), math.log
    )


def calibrate_noise(
    target_epsilon: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    other_events: Iterable[PrivacyEvent] = (),
) -> float:
    """The smallest noise multiplier, rounded up to four significant digits, whose ``steps`` sampled steps
    together with ``other_events`` cost at most ``target_epsilon`` at ``delta``.

    Raises UsageError for values out of range, BudgetError if ``other_events`` leave nothing to spend.
    """
    if not 0 < target_epsilon < math.inf:
        raise UsageError(f"a target epsilon of {target_epsilon} cannot be calibrated to")
    others = merged(other_events)
    spent = epsilon(others, delta)
    if spent >= target_epsilon:
        raise BudgetError(
            f"no noise multiplier reaches epsilon {target_epsilon:g}",
            why=f"the other releases alone cost {spent:.4g}",
            fix="Raise their noise or the target",
        )

    def cost(sigma: float) -> float:
        return epsilon([*others, SampledGaussian(sigma, sampling_rate, steps)], delta)

    enough = 1.0
    while cost(enough) > target_epsilon:
        enough *= 2
        if enough > _MAX_SIGMA:
            raise BudgetError(
                f"no noise multiplier up to {_MAX_SIGMA:g} reaches epsilon {target_epsilon:g}",
                why=f"the other releases alone cost {spent:.4g}",
                fix="Raise their noise or the target",
            )
    while enough <= 1 and cost(enough / 2) <= target_epsilon:
        enough /= 2
    # Between half of it, which is too little, and it, on a grid of four significant digits.
    grid = 10.0 ** (math.floor(math.log10(enough / 2)) - 3)
    most = math.ceil(enough / grid)
    drop = _last_within(
        lambda less: cost((most - less) * grid),
        target_epsilon,
        0,
        most - math.floor(enough / 2 / grid),
        lambda less: -math.log(most - less),
    )
    return float(f"{(most - drop) * grid:.12g}")


def _last_within(
    cost: Callable[[int], float], ceiling: float, low: int, high: int, axis: Callable[[int], float]
) -> int:
    """The largest n in [low, high) with cost(n) <= ceiling, for a rising cost that is within it at ``low``
    and beyond it at ``high``.

    Each cost takes a good part of a second, so it interpolates log cost over ``axis`` (where costs are nearly
    straight: a few evaluations instead of a dozen), and halves when that gains too little.
    """
    at_low, at_high, slow = cost(low), cost(high), 0
    while high - low > 1:
        width = high - low
        guess = (low + high) // 2
        if slow < 2 and 0 < at_low < at_high < math.inf:
            share = math.log(ceiling / at_low) / math.log(at_high / at_low)
            target = axis(low) + share * (axis(high) - axis(low))
            guess = bisect_right(range(low + 1, high), target, key=axis) + low
        guess = min(max(guess, low + 1), high - 1)
        value = cost(guess)
        if value <= ceiling:
            low, at_low = guess, value
        else:
            high, at_high = guess, value
        slow = 0 if 2 * (high - low) <= width else slow + 1
    return low


@lru_cache(maxsize=256)
def _epsilon(history: tuple[PrivacyEvent, ...], delta: float) -> float:
    bound = _rdp_epsilon(history, delta)
    # Powers of an FFT lose precision with the exponent: ask for a little less delta than allowed.
    target = delta - _FFT_ERROR * sum(e.steps for e in history if isinstance(e, SampledGaussian))
    weakest = min(event.noise_multiplier for event in history)
    if bound > _PLD_UP_TO or weakest < _PLD_SIGMA_FROM or target <= 0:
        return bound
    composed: Any = None
    for event in history:
        if isinstance(event, SampledGaussian):
            part = _one_step(event.noise_multiplier, event.sampling_rate).self_compose(event.steps)
        else:
            part = _one_step(event.noise_multiplier / math.sqrt(event.count), 1.0)
        composed = part if composed is None else composed.compose(part)
    return min(bound, float(composed.get_epsilon_for_delta(target)))


@lru_cache(maxsize=8)
def _one_step(sigma: float, rate: float) -> Any:
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        sigma,
        pessimistic_estimate=True,
        value_discretization_interval=_INTERVAL,
        sampling_prob=rate,
    )


def _rdp_epsilon(history: tuple[PrivacyEvent, ...], delta: float) -> float:
    import numpy as np
    from dp_accounting.rdp import compute_epsilon

    rdp = np.zeros(len(_ORDERS))
    for event in history:
        if isinstance(event, SampledGaussian):
            rdp += event.steps * _one_step_rdp(event.noise_multiplier, event.sampling_rate)
        else:
            rdp += event.count * _one_step_rdp(event.noise_multiplier, 1.0)
    return float(compute_epsilon(np.array(_ORDERS), rdp, delta)[0])


@lru_cache(maxsize=64)
def _one_step_rdp(sigma: float, rate: float) -> Any:
    """Renyi divergences at ``_ORDERS``; they add up over a composition."""
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(_ORDERS, dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    gaussian = dp_accounting.GaussianDpEvent(sigma)
    accountant.compose(gaussian if rate == 1 else dp_accounting.PoissonSampledDpEvent(rate, gaussian))
    return accountant.rdp
