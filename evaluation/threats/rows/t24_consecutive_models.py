"""A hospital of the study looks at two global models in a row for what the others trained on."""

from __future__ import annotations

import numpy as np

from cipherward.evaluation.threats.attacks import images, intervals, inversion, vision
from cipherward.evaluation.threats.attacks.images import ImageSet, Likeness, Pixels
from cipherward.evaluation.threats.plots import images as pictures
from cipherward.evaluation.threats.row import Context, Interval, Picture, Result, Row
from cipherward.site_agent.ledger.accounting import calibrate_noise
from cipherward.site_agent.training.constants import SgdConstants

_OTHERS = 3
_EPSILON, _DELTA, _CLIP = 8.0, 1e-5, 1.0
_ALIKE = 0.15


def _seen(
    found: ImageSet, chosen: list[int], task: vision.VisionTask, start: np.ndarray, constants: SgdConstants
) -> np.ndarray:
    """The others' summed gradients, from the models before and after the round and the peer's own update."""
    own, *others = (
        vision.update(task, vision.records(found.take(np.array([one]))), start, constants) for one in chosen
    )
    after = vision.server_step(start, [own, *others])
    moved = (after.astype(np.float64) - start) * (_OTHERS + 1) - own
    return vision.as_gradient(moved, constants)


def run(context: Context) -> Result:
    """The same rounds without and with differential privacy."""
    found = images.chosen()
    rng = np.random.default_rng(context.seed)
    rounds = 24 if context.fast else 96
    # The first of each round is the peer's own.
    chosen = rng.choice(len(found.labels), (rounds, 1 + _OTHERS), replace=False)
    true, labels = found.pixels[chosen[:, 1:]], found.labels[chosen[:, 1:]]
    task = vision.VisionTask(found)
    start = vision.initial(task, context.seed)
    gradients = inversion.gradients_of(task, start)
    sigma = calibrate_noise(_EPSILON, _DELTA, 1.0, 1)
    made: dict[str, Pixels] = {}
    likeness: dict[str, Likeness] = {}
    for view, constants in {"off": vision.plain_step(1), "on": vision.private_step(1, _CLIP, sigma)}.items():
        context.note(f"{rounds} rounds, differential privacy {view}")
        seen = np.stack([_seen(found, list(row), task, start, constants) for row in chosen])
        made[view] = inversion.geiping(gradients, seen, labels, found.side, seed=context.seed)
        likeness[view] = images.compare(made[view], true)
    guess = intervals.mean(images.class_guess(found, chosen[:, 1:]))
    own = {view: intervals.mean(one.own) for view, one in likeness.items()}
    gain = {view: intervals.mean(one.gain) for view, one in likeness.items()}
    figures: dict[str, dict[str, Interval | float | str]] = {
        view: {
            "rounds": rounds,
            "data": found.name,
            "SSIM with its own images": own[view],
            "SSIM more than with other images": gain[view],
            "PSNR, median, dB": float(np.median(likeness[view].best_psnr)),
            "SSIM of the guess 'mean image of the class'": guess,
        }
        for view in made
    }
    shown: list[Picture] = []
    for place in range(_OTHERS):
        row = {
            "another hospital's image": true[0, place],
            "without privacy": made["off"][0, place],
            "with it": made["on"][0, place],
        }
        shown += pictures(f"hospital {place + 2}", row, pixels=90)
    return Result(
        control=figures["off"],
        defended={"epsilon of the round": _EPSILON, "noise multiplier": sigma, **figures["on"]},
        control_worked=own["off"].low > guess.high and gain["off"].low > _ALIKE,
        held=own["on"].high < guess.low and gain["on"].high < _ALIKE,
        plain=f"Without privacy a hospital redraws the other hospitals' images from two models in a row (SSIM "
        f"{own['off'].value:.2f}); with it (epsilon {_EPSILON:g} a round) what it gets (SSIM {own['on'].value:.2f}) is "
        f"worse than guessing the mean image of the class ({guess.value:.2f}).",
        pictures=shown,
        notes=[
            "Encryption does not stop this attack: members open the sum. Only differential privacy does. The attacker "
            "is helped: one patient at each other hospital, one step, known labels, everybody sampled, and an epsilon "
            "larger than policies allow.",
            intervals.seen_above(_ALIKE, "gain in SSIM", gain["on"]),
        ],
    )


ROW = Row(
    id="T24",
    title="A peer reconstructs images from consecutive global models",
    adversary="A hospital of the study, which follows the protocol",
    holds="The global models before and after a round, its own update, and the others' labels",
    source="Inverting Gradients: Geiping et al., NeurIPS 2020, on the sum of the other hospitals' gradients",
    metric="SSIM of the reconstructions with the others' images, matched as well as can be",
    passes="Without privacy better than the mean image of the class; with it worse than that guess, and liker to the "
    "own images than to others' by less than 0.15, each by a 99.9 % interval",
    seeds=(24,),
    fast_seconds=35,
    full_seconds=70,
    run=run,
)
