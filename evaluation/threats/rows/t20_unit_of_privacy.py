"""How far one patient, with all of their images, can move what a hospital adds noise to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cipherward.evaluation.threats.attacks import images, vision
from cipherward.evaluation.threats.attacks.images import ImageSet
from cipherward.evaluation.threats.bypass import replaced
from cipherward.evaluation.threats.plots import OFF, ON, plot
from cipherward.evaluation.threats.row import Case, Context, Result, Row
from cipherward.site_agent.training import dpsgd
from cipherward.site_agent.training.constants import DpSgd, SgdConstants, SharedNoise

_CLIP = 1.0
_ROUNDING = 1e-4
"""Of C: the other patients' gradients are float32, and their kernels see another batch size."""


def _shared(constants: DpSgd) -> SharedNoise:
    """The same step for noise that hospitals share."""
    return SharedNoise(
        sampling_rate=constants.sampling_rate,
        steps=1,
        divisor=constants.divisor,
        learning_rate=constants.learning_rate,
        loss_bound=constants.loss_bound,
        metrics_scale=constants.metrics_scale,
        clip_norm=constants.clip_norm,
        noise_multiplier=constants.noise_multiplier,
        metrics_noise_multiplier=constants.metrics_noise_multiplier,
        honest=2.0,
        noise_range=32.0,
    )


def _before_noise(
    task: vision.VisionTask,
    found: ImageSet,
    patients: Sequence[str],
    start: NDArray[np.float32],
    constants: SgdConstants,
) -> NDArray[np.float64]:
    """The sum over all patients that the real training hands to the Gaussian mechanism."""
    sums: list[NDArray[np.float64]] = []

    def mechanism(exact: torch.Tensor, *_: Any) -> torch.Tensor:
        sums.append(exact.double().numpy().copy())
        return exact

    with replaced(dpsgd, "gaussian_mechanism", mechanism):
        vision.update(task, vision.records(found, patients), start, constants)
    return sums[0]


def _moves(
    task: vision.VisionTask,
    found: ImageSet,
    owners: NDArray[np.str_],
    names: NDArray[np.str_],
    start: NDArray[np.float32],
    constants: SgdConstants,
) -> NDArray[np.float64]:
    """By how much the sum moves when all images of each owner are removed; ``names``: the patients as training knows
    them, one an image."""
    whole = _before_noise(task, found, list(names), start, constants)
    moves = []
    for owner in np.unique(owners):
        rest = np.flatnonzero(owners != owner)
        without = _before_noise(task, found.take(rest), list(names[rest]), start, constants)
        moves.append(float(np.linalg.norm(whole - without)))
    return np.array(moves)


def run(context: Context) -> Result:
    """Each patient removed in turn: clipped per image (the mutant), and as shipped."""
    found = images.chosen()
    rng = np.random.default_rng(context.seed)
    patients = 16 if context.fast else 64
    counts = np.append(rng.integers(1, 8, patients - 1), 40)
    chosen = found.take(rng.choice(len(found.labels), counts.sum(), replace=False))
    owners = np.repeat([f"patient-{index:03d}" for index in range(patients)], counts)
    order = rng.permutation(len(owners))  # a patient's images are not side by side in a hospital's file
    chosen, owners = chosen.take(order), owners[order]
    each = np.array([f"image-{index:04d}" for index in range(len(owners))])
    broken = ImageSet(chosen.name, chosen.pixels.copy(), chosen.labels, chosen.classes)
    broken.pixels[owners == owners[0]] = np.nan

    task = vision.VisionTask(found)
    start = vision.initial(task, context.seed)
    local = vision.private_step(patients, _CLIP, 1.0)
    settings: dict[str, tuple[SgdConstants, ImageSet]] = {
        "noise of each hospital's own": (local, chosen),
        "noise shared between hospitals": (_shared(local), chosen),
        "a patient with images that are not numbers": (local, broken),
    }
    cases, bars = [], {}
    for name, (constants, data) in settings.items():
        context.note(name)
        mutant = _moves(task, data, owners, each, start, constants)
        moves = _moves(task, data, owners, owners, start, constants)
        bars[name] = (float(mutant.max()), float(moves.max()))
        cases.append(
            Case(
                name,
                f"clipped per image, one patient moves the sum by {mutant.max():.2f} C",
                bool(mutant.max() > 2 * _CLIP),
                f"one patient moves the sum by {moves.max():.5f} C at most",
                bool(0.5 * _CLIP < moves.max() <= _CLIP * (1 + _ROUNDING)),
            )
        )

    def draw(axes: Any) -> None:
        places = np.arange(len(bars))
        axes.barh(places - 0.2, [off for off, _ in bars.values()], 0.4, color=OFF, label="clipped per image")
        axes.barh(places + 0.2, [on for _, on in bars.values()], 0.4, color=ON, label="as shipped")
        axes.axvline(_CLIP, color="black", linewidth=0.8)
        axes.set_yticks(places, list(bars))
        axes.set_xlabel("largest move of the sum, in units of C")
        axes.legend(frameon=False)

    most = max(on for _, on in bars.values())
    return Result.of_cases(
        cases,
        f"Removing any one of {patients} patients with all of their images, up to 40, moves what the noise is added to "
        f"by at most {most:.5f} times the clipping norm; with clipping per image it would be "
        f"{max(off for off, _ in bars.values()):.1f} times.",
        control={"patients": patients, "largest move, in C": max(off for off, _ in bars.values())},
        defended={"patients": patients, "largest move, in C": most},
        pictures=[plot("Largest move of the sum by one patient", draw)],
        notes=[
            "A patient is who the hospital's file says it is: two ids for one person are two patients, each with the "
            "guarantee of one."
        ],
    )


ROW = Row(
    id="T20",
    title="Unit of privacy: one patient, all records",
    adversary="Whoever sees the noised result and knows everything but one patient",
    holds="The result of a training step",
    source="Abadi et al., CCS 2016, for the clipped sum; McMahan et al., ICLR 2018, for clipping by person",
    metric="How far the sum before the noise moves when all images of one patient are removed, in clipping norms C",
    passes="By no more than C, but for float32 rounding (1e-4), for every patient, and by more than C/2 for some, so "
    "that it is no sum of nothing; with clipping per image by more "
    "than 2 C",
    seeds=(20,),
    fast_seconds=10,
    full_seconds=30,
    run=run,
)
