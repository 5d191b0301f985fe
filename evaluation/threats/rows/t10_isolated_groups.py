"""Sums over many rounds, each over a different cohort, solved for single hospitals."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cipherward.evaluation.threats.attacks import images, intervals, inversion, participation, vision
from cipherward.evaluation.threats.attacks.images import ImageSet, Likeness, Pixels
from cipherward.evaluation.threats.plots import OFF, plot
from cipherward.evaluation.threats.plots import images as pictures
from cipherward.evaluation.threats.row import Context, Picture, Result, Row
from cipherward.site_agent.ledger.accounting import calibrate_noise
from cipherward.site_agent.training.constants import PlainSgd, SgdConstants

_SITES, _LEAST, _AVAILABILITY = 10, 7, 0.85
"""Ten hospitals with t = 7, each there in 85 of 100 rounds."""
_EPSILON, _DELTA, _CLIP = 8.0, 1e-5, 1.0
_ALIKE = 0.15
_PATTERNS = 50


def _sums(
    found: ImageSet,
    matrix: participation.Matrix,
    patients: NDArray[np.int64],
    task: vision.VisionTask,
    start: NDArray[np.float32],
    constants: SgdConstants,
) -> NDArray[np.float64]:
    """What members open in each round: the summed gradients of who is there, (rounds, P). The model stands still,
    which is as good for the attacker as it gets."""

    def update(site: np.int64) -> NDArray[np.float32]:
        return vision.update(task, vision.records(found.take(patients[[site]])), start, constants)

    # Without noise, everybody in one step from a model that stands still: the same update in every round.
    same = isinstance(constants, PlainSgd)
    made = [update(site) for site in np.arange(_SITES)] if same else []
    sums = []
    for present in matrix:
        updates = [made[site] if same else update(site) for site in np.flatnonzero(present)]
        sums.append(vision.as_gradient(np.sum(updates, axis=0, dtype=np.float64), constants))
    return np.stack(sums)


def _group_sizes(context: Context, rounds: list[int]) -> dict[int, list[int]]:
    """By number of rounds, the smallest group that each of many participation patterns isolates."""
    made: dict[int, list[int]] = {}
    for count in rounds:
        patterns = (
            participation.random_rounds(
                _SITES, _LEAST, count, _AVAILABILITY, context.seed + 1000 * count + one
            )
            for one in range(_PATTERNS)
        )
        made[count] = [len(participation.smallest_group(matrix)) for matrix in patterns]
    return made


def run(context: Context) -> Result:
    """Which groups are isolated; and what is seen of a hospital that is, without and with differential privacy."""
    found = images.chosen()
    rng = np.random.default_rng(context.seed)
    rounds, worlds = 20, 4 if context.fast else 16
    sizes = _group_sizes(context, [2, 5, 10, 15, 20])
    task = vision.VisionTask(found)
    start = vision.initial(task, context.seed)
    gradients = inversion.gradients_of(task, start)
    sigma = calibrate_noise(_EPSILON, _DELTA, 1.0, rounds)
    matrices: list[participation.Matrix] = []
    chosen: list[NDArray[np.int64]] = []
    while len(matrices) < worlds:
        matrix = participation.random_rounds(
            _SITES, _LEAST, rounds, _AVAILABILITY, context.seed + len(matrices)
        )
        matrices.append(matrix)
        chosen.append(rng.choice(len(found.labels), _SITES, replace=False))
    isolated = [
        (world, site) for world, one in enumerate(matrices) for site in participation.single_sites(one)
    ]
    true = np.stack([found.pixels[chosen[world][[site]]] for world, site in isolated])
    labels = np.stack([found.labels[chosen[world][[site]]] for world, site in isolated])
    made: dict[str, Pixels] = {}
    likeness: dict[str, Likeness] = {}
    for view, constants in {"off": vision.plain_step(1), "on": vision.private_step(1, _CLIP, sigma)}.items():
        context.note(f"{worlds} cohorts over {rounds} rounds, differential privacy {view}")
        solved = [
            participation.disaggregate(matrix, _sums(found, matrix, patients, task, start, constants))
            for matrix, patients in zip(matrices, chosen, strict=True)
        ]
        seen = np.stack([solved[world][site] for world, site in isolated])
        made[view] = inversion.geiping(gradients, seen, labels, found.side, seed=context.seed)
        likeness[view] = images.compare(made[view], true)
    guess = intervals.mean(
        images.class_guess(found, np.array([[chosen[world][site]] for world, site in isolated]))
    )
    own = {view: intervals.mean(one.own) for view, one in likeness.items()}
    gain = {view: intervals.mean(one.gain) for view, one in likeness.items()}
    shown: list[Picture] = []
    for place in range(3):
        row = {
            "the hospital's image": true[place, 0],
            "without privacy": made["off"][place, 0],
            "with it": made["on"][place, 0],
        }
        shown += pictures(f"hospital {place + 1}", row, pixels=90)

    def draw(axes: Any) -> None:
        axes.plot(list(sizes), [float(np.mean(of)) for of in sizes.values()], "o-", color=OFF)
        axes.set_xlabel("rounds")
        axes.set_ylabel("hospitals in the smallest group")
        axes.set_ylim(0, _SITES)

    alone = {count: sum(size == 1 for size in of) / len(of) for count, of in sizes.items()}
    everybody = np.ones((rounds, _SITES), dtype=np.int64)
    return Result(
        control={
            "hospitals solved for": len(isolated),
            "SSIM with the hospital's image": own["off"],
            "SSIM more than with others'": gain["off"],
            "SSIM of the guess 'mean image of the class'": guess,
        },
        defended={
            "epsilon over all rounds": _EPSILON,
            "noise multiplier": sigma,
            "SSIM with the hospital's image": own["on"],
            "SSIM more than with others'": gain["on"],
            "residual: patterns of 5 rounds that isolate a hospital": alone[5],
            f"residual: patterns of {rounds} rounds that isolate a hospital": alone[rounds],
            "smallest group where everybody is always there": len(participation.smallest_group(everybody)),
        },
        control_worked=own["off"].low > guess.high and gain["off"].low > _ALIKE,
        held=own["on"].high < guess.low and gain["on"].high < _ALIKE,
        plain=f"Ten hospitals that each miss one round in seven: after {rounds} rounds {alone[rounds]:.0%} of "
        f"participation patterns isolate a single hospital, and without privacy its image is redrawn (SSIM "
        f"{own['off'].value:.2f}). With epsilon {_EPSILON:g} over all rounds what is redrawn (SSIM "
        f"{own['on'].value:.2f}) is worse than guessing ({guess.value:.2f}).",
        pictures=[plot("Smallest group that the rounds' sums isolate, mean of 50 patterns", draw), *shown],
        notes=[
            "Residual risk: secure aggregation hides an update in one round's sum, not over many rounds. The group "
            "that an update hides in shrinks with every round in which somebody else is missing.",
            "What bounds the loss then is the ledger's epsilon over all rounds: each round's sum is charged by itself, "
            "and no combination of sums costs more than all of them together, whoever is isolated.",
            intervals.seen_above(_ALIKE, "gain in SSIM", gain["on"]),
            "The intervals count a cohort's hospitals as independent, though the noise of its rounds is one.",
        ],
    )


ROW = Row(
    id="T10",
    title="Small groups isolated over many rounds",
    adversary="A hospital of the study, or whoever sees all models, and knows who took part in each round",
    holds="The opened sum of every round",
    source="So, Ali, Guler, Jiao and Avestimehr, AAAI 2023; Lam et al., ICML 2021; images by Geiping et al., "
    "NeurIPS 2020",
    metric="Smallest group that a combination of rounds isolates; SSIM of the image redrawn of a hospital so isolated",
    passes="With differential privacy worse than guessing the mean image of the class, and liker to the own image "
    "than to others by less than 0.15, each by a 99.9 % interval; without it better. The groups are a residual risk",
    seeds=(10,),
    fast_seconds=30,
    full_seconds=60,
    run=run,
)
