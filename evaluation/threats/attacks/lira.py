"""Membership inference by likelihood ratio: Carlini, Chien, Nasr, Song, Terzis and Tramer, IEEE S&P 2022 (LiRA).

Many models are trained, each on a random half of the records. For each record the scores of models that saw it and of
those that did not are fitted by two Gaussians; a further model's score is judged by their ratio. Every model is the
target once, judged by all others. Variances are taken over all records, as the paper does for few models.
This is its online attack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cipherward.errors import UsageError
from cipherward.evaluation.threats.attacks.intervals import percentile
from cipherward.evaluation.threats.row import Interval

Scores = NDArray[np.float64]
Members = NDArray[np.bool_]
_LEAST_MODELS = 8
_RESAMPLES = 2000
"""The ends of a 99.75 % interval are then more than the outermost resample."""


@dataclass(frozen=True, slots=True)
class Judged:
    """``ratios``: (models, records), log of the ratio that the model saw the record. ``members``: whether it did."""

    ratios: Scores
    members: Members

    def join(self, other: Judged) -> Judged:
        """Targets of both, for figures pooled over them. The same number of models is needed."""
        return Judged(
            np.concatenate([self.ratios, other.ratios], axis=1),
            np.concatenate([self.members, other.members], axis=1),
        )


def confidences(probabilities: NDArray[np.float64]) -> Scores:
    """logit(p) of the probability of the right class: near a Gaussian, unlike p (section IV.C)."""
    clipped = np.clip(probabilities, 1e-12, 1 - 1e-12)
    scores: Scores = np.log(clipped) - np.log1p(-clipped)
    return scores


def halves(models: int, records: int, seed: int) -> Members:
    """Who is in which model's training set: each record in one half of the models, (models, records)."""
    rng = np.random.default_rng(seed)
    order = np.argsort(rng.random((models, records)), axis=0)
    return order < models // 2


def judge(scores: Scores, members: Members) -> Judged:
    """Each model as the target, by all others. Raises UsageError for fewer than eight models."""
    models = len(scores)
    if models < _LEAST_MODELS or scores.shape != members.shape:
        raise UsageError(f"{models} models are too few to fit, or do not fit the list of members")
    ratios = np.zeros_like(scores)
    for target in range(models):
        rest = np.arange(models) != target
        for inside, sign in ((True, 1.0), (False, -1.0)):
            mean, variance = _fit(scores[rest], members[rest] == inside)
            ratios[target] -= sign * ((scores[target] - mean) ** 2 / variance + np.log(variance)) / 2
    return Judged(ratios, members)


def _fit(scores: Scores, chosen: Members) -> tuple[Scores, float]:
    """The mean of the chosen scores for each record, and their variance over all of them."""
    count = chosen.sum(axis=0)
    mean = np.where(chosen, scores, 0.0).sum(axis=0) / count
    deviations = np.where(chosen, scores - mean, 0.0)
    variance = float((deviations**2).sum() / (count.sum() - len(count)))
    return mean, max(variance, 1e-12)


def true_positive_rate(ratios: Scores, members: Members, false_positive_rate: float) -> float:
    """TPR at the threshold that this share of non-members exceeds."""
    outside = ratios[~members]
    place = len(outside) - 1 - int(false_positive_rate * len(outside))
    return float((ratios[members] > np.partition(outside, place)[place]).mean())


def rate_interval(judged: Judged, false_positive_rate: float, level: float, seed: int) -> Interval:
    """TPR at an FPR, pooled over models and records. Both are resampled (pigeonhole bootstrap, Owen 2007): a record is
    judged in every model, and a model judges every record."""
    rng = np.random.default_rng(seed)
    models, records = judged.ratios.shape
    resampled = np.empty(_RESAMPLES)
    for place in range(_RESAMPLES):
        chosen = np.ix_(rng.integers(models, size=models), rng.integers(records, size=records))
        resampled[place] = true_positive_rate(
            judged.ratios[chosen], judged.members[chosen], false_positive_rate
        )
    estimate = true_positive_rate(judged.ratios, judged.members, false_positive_rate)
    return percentile(estimate, resampled, level)


def curve(judged: Judged, rates: Sequence[float]) -> list[float]:
    """TPR at each FPR, for a plot."""
    return [true_positive_rate(judged.ratios, judged.members, rate) for rate in rates]


def attack(train: Callable[[NDArray[np.int64]], Scores], models: int, records: int, seed: int) -> Judged:
    """Train ``models`` models and judge them. ``train``: record numbers -> the model's scores of all records."""
    members = halves(models, records, seed)
    scores = np.stack([train(np.flatnonzero(one)) for one in members])
    return judge(scores, members)
