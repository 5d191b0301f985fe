"""Was this patient in the training set? Asked of released models, without and with differential privacy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cipherward.evaluation.threats.attacks import images, intervals, lira, vision
from cipherward.evaluation.threats.attacks.lira import Judged, Scores
from cipherward.evaluation.threats.plots import OFF, ON, plot
from cipherward.evaluation.threats.row import Context, Figure, Interval, Picture, Result, Row
from cipherward.evaluation.threats.statistics import split_level
from cipherward.site_agent.ledger.accounting import calibrate_noise
from cipherward.site_agent.tasks.base import Records, Split, Task
from cipherward.site_agent.tasks.heart_disease.defaults import HEART_STUDY
from cipherward.site_agent.tasks.registry import find
from cipherward.site_agent.training import weights
from cipherward.site_agent.training.constants import DpSgd, PlainSgd, SgdConstants

EPSILON, DELTA = 0.5, 1e-4
RATES = (0.01, 0.05)
_MARGIN = 1.5
"""Over what epsilon allows: with a tenth of the noise the attack gets more."""
_HOSPITALS = ("cleveland", "hungary", "switzerland", "va-long-beach")
_HIDDEN, _IMAGES = 32, 150
_LEVEL = split_level(2 * len(RATES), 0.99)


@dataclass(frozen=True)
class _Site:
    """One hospital's patients, and how its model is trained without privacy."""

    name: str
    task: Task
    records: Records
    steps: int
    learning_rate: float

    @property
    def patients(self) -> int:
        return len(self.records.patient_ids)

    def plain(self) -> PlainSgd:
        """Until it knows its patients by heart."""
        return PlainSgd(
            sampling_rate=1.0,
            steps=self.steps,
            divisor=self.patients / 2,
            learning_rate=self.learning_rate,
            loss_bound=2.0,
            metrics_scale=200.0,
        )

    def private(self, sigma: float) -> DpSgd:
        """A whole study of the demo's, at this noise."""
        study = HEART_STUDY
        return DpSgd(
            sampling_rate=study.sampling_rate,
            steps=study.steps * study.rounds,
            divisor=study.sampling_rate * self.patients / 2,
            learning_rate=study.learning_rate,
            loss_bound=study.loss_bound,
            metrics_scale=study.metrics_scale,
            clip_norm=study.clip_norm,
            noise_multiplier=sigma,
            metrics_noise_multiplier=study.metrics_noise_multiplier,
        )

    def trainer(self, constants: SgdConstants) -> Callable[[NDArray[np.int64]], Scores]:
        """Trains on some of the patients for real, and scores all."""
        start = vision.initial(self.task, 0)

        def train(chosen: NDArray[np.int64]) -> Scores:
            of = torch.from_numpy(chosen)
            own = Records(
                self.records.features[of],
                self.records.labels[of],
                tuple(self.records.patient_ids[index] for index in chosen),
            )
            model = weights.build(self.task)
            weights.assign(model, start + vision.update(self.task, own, start, constants))
            with torch.no_grad():
                loss = self.task.loss(model(self.records.features), self.records.labels)
            return lira.confidences(torch.exp(-loss).double().numpy())

        return train


def _hospitals(parts: int) -> list[_Site]:
    task = find("heart-disease")
    return [
        _Site(name, task, task.load(f"builtin:{name}/1of{parts}", Split.TRAIN), 150, 2.0)
        for name in _HOSPITALS
    ]


def _imaging(seed: int) -> list[_Site]:
    found = images.chosen()
    chosen = np.random.default_rng(seed).choice(len(found.labels), _IMAGES, replace=False)
    task = vision.VisionTask(found, _HIDDEN)
    return [_Site(found.name, task, vision.records(found.take(chosen)), 100, 0.5)]


def _pooled(judged: list[Judged]) -> Judged:
    whole = judged[0]
    for one in judged[1:]:
        whole = whole.join(one)
    return whole


def _curves(name: str, off: Judged, on: Judged) -> Picture:
    rates = list(np.logspace(-3, 0, 60)[:-1])

    def draw(axes: Any) -> None:
        axes.plot(rates, lira.curve(off, rates), color=OFF, label="without privacy")
        axes.plot(rates, lira.curve(on, rates), color=ON, label=f"epsilon {EPSILON:g}")
        bound = [min(1.0, math.exp(EPSILON) * rate + DELTA) for rate in rates]
        axes.plot(rates, bound, color="black", linestyle="--", linewidth=0.8, label="what epsilon allows")
        axes.plot(rates, rates, color="grey", linestyle=":", linewidth=0.8, label="guessing")
        axes.set(xscale="log", yscale="log", xlabel="false positive rate", ylabel="true positive rate")
        axes.legend(frameon=False)

    return plot(f"Membership inference, {name}", draw, width=5.0, height=3.4)


def run(context: Context) -> Result:
    """LiRA on four small hospitals' heart models and on an image model."""
    models = 64 if context.fast else 256
    sigma = calibrate_noise(EPSILON, DELTA, HEART_STUDY.sampling_rate, HEART_STUDY.steps * HEART_STUDY.rounds)
    control: dict[str, Figure] = {"models a site": models}
    defended: dict[str, Figure] = {"models a site": models, "epsilon": EPSILON, "noise multiplier": sigma}
    pictures, worked, checks, said = [], [], [], []
    for name, sites in {"heart": _hospitals(4), "images": _imaging(context.seed)}.items():
        judged: dict[str, list[Judged]] = {"off": [], "on": []}
        for place, site in enumerate(sites):
            context.note(f"{2 * models} models of {site.name}")
            for view, constants in {"off": site.plain(), "on": site.private(sigma)}.items():
                attack = lira.attack(site.trainer(constants), models, site.patients, context.seed + place)
                judged[view].append(attack)
                figures = control if view == "off" else defended
                figures[f"{site.name}: TPR at 5 % FPR"] = lira.true_positive_rate(
                    attack.ratios, attack.members, 0.05
                )
        off, on = _pooled(judged["off"]), _pooled(judged["on"])
        for rate in RATES:
            bound = math.exp(EPSILON) * rate + DELTA
            without, private = (lira.rate_interval(one, rate, _LEVEL, context.seed) for one in (off, on))
            text = f"{name}, {off.members.shape[1]} targets: TPR at {rate:.0%} FPR"
            control[text], defended[text] = without, private
            defended[f"{name}: TPR that epsilon allows at {rate:.0%} FPR"] = bound
            limit = _limit(without, rate, bound)
            worked.append(without.low > bound)
            checks.append((private, limit, bound))
            said.append((name, rate, without, private, limit))
        pictures.append(_curves(name, off, on))
    worst, rate, without, private, _ = max(said, key=lambda one: one[2].value / one[1])
    return Result(
        control=control,
        defended=defended,
        control_worked=all(worked),
        held=all(_held(*check) for check in checks),
        plain=f"Without privacy the attacker names {without.value:.0%} of those whom a model ({worst}) was trained on, "
        f"while wrong about {rate:.0%} of the others; with epsilon {EPSILON:g} it names {private.value:.1%}, at most "
        f"{private.high:.1%}, where a guess names {rate:.0%}.",
        pictures=pictures,
        notes=[
            "The attacker is helped: it has the hospital's model alone (in a study, the sum less all others'), and "
            "all of the hospital's records, of which a random half was trained on.",
            *(
                intervals.seen_above(limit, f"TPR at {rate:.0%} FPR ({name})", private)
                for name, rate, _, private, limit in said
            ),
        ],
    )


def _limit(without: Interval, rate: float, bound: float) -> float:
    """What the interval with privacy must end below: the attack's without, and where enough non-members are counted
    for it, little more than what epsilon allows."""
    return min(without.low, _MARGIN * bound) if rate == max(RATES) else without.low


def _held(private: Interval, limit: float, bound: float) -> bool:
    """Not above what epsilon allows, and below the limit."""
    return private.low <= bound and private.high < limit


ROW = Row(
    id="T16",
    title="Membership inference on the released model",
    adversary="Anybody who has a released model, the task and most of a hospital's records",
    holds="The model of one hospital, many models trained on its other records, and the record in question",
    source="LiRA: Carlini, Chien, Nasr, Song, Terzis and Tramer, IEEE S&P 2022, online, every model the target once",
    metric="True positive rate at 1 % and 5 % false positives, pooled over models and records; both resampled",
    passes="Without privacy the interval is above exp(epsilon) FPR + delta; with epsilon 0.5 it "
    "is not, lies below the interval without privacy and, at 5 %, ends below 1.5 times what epsilon allows (99 % for "
    "all intervals of a view together)",
    seeds=(16,),
    fast_seconds=50,
    full_seconds=300,
    run=run,
)
