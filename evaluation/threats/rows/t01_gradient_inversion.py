"""One hospital's update, in clear and as the coordinator has it, under gradient inversion."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cipherward.evaluation.threats.attacks import images, intervals, inversion, vision
from cipherward.evaluation.threats.attacks.ciphertext import read_as_numbers
from cipherward.evaluation.threats.attacks.images import Likeness, Pixels
from cipherward.evaluation.threats.kit.stored_uploads import stored_uploads
from cipherward.evaluation.threats.plots import images as pictures
from cipherward.evaluation.threats.row import Context, Interval, Picture, Result, Row

_ALIKE = 0.15
"""SSIM by which a reconstruction may be liker to its own image than to others before it counts as one."""
_SHOWN = 3


def _figures(name: str, likeness: Likeness) -> dict[str, Interval | float]:
    return {
        f"{name}: SSIM with its own image": intervals.mean(likeness.own),
        f"{name}: SSIM more than with another image": intervals.mean(likeness.gain),
        f"{name}: PSNR, median, dB": float(np.median(likeness.best_psnr)),
    }


def _side_by_side(true: Pixels, clear: Pixels, encrypted: Pixels) -> list[Picture]:
    made = []
    for place in range(_SHOWN):
        shown = {
            "the hospital's image": true[place, 0],
            "from the update in clear": clear[place, 0],
            "from what the coordinator has": encrypted[place, 0],
        }
        made += pictures(f"image {place + 1}", shown, pixels=90)
    return made


def run(context: Context) -> Result:
    """Both attacks on the updates in clear, and on what a real coordinator stored of them."""
    found = images.chosen()
    rng = np.random.default_rng(context.seed)
    count = 32 if context.fast else 96
    chosen = rng.choice(len(found.labels), (count, 1), replace=False)
    true, labels = found.pixels[chosen], found.labels[chosen]
    task = vision.VisionTask(found)
    start = vision.initial(task, context.seed)
    constants = vision.plain_step(1)
    updates = [vision.update(task, vision.records(found.take(one)), start, constants) for one in chosen]
    seen: NDArray[np.float32] = np.stack(updates)
    context.note(f"{count} hospitals upload to a real coordinator")
    params, stored = stored_uploads(context.folder / "service", updates, start)
    read = [read_as_numbers(params, chunks, len(start)) for chunks in stored]

    gradients = inversion.gradients_of(task, start)
    views = {"clear": vision.as_gradient(seen, constants), "ciphertext": np.stack(read)}
    attacks = {"Geiping": inversion.geiping, "DLG": inversion.dlg}
    made: dict[tuple[str, str], Pixels] = {}
    likeness: dict[tuple[str, str], Likeness] = {}
    for view, gradient in views.items():
        for name, attack in attacks.items():
            context.note(f"{name} on {count} updates, {view}")
            made[view, name] = attack(gradients, gradient, labels, found.side, seed=context.seed)
            likeness[view, name] = images.compare(made[view, name], true)
    off, on = (
        {key: value for name in attacks for key, value in _figures(name, likeness[view, name]).items()}
        for view in views
    )
    gains = {key: intervals.mean(one.gain) for key, one in likeness.items()}
    own = intervals.mean(likeness["clear", "Geiping"].own)
    hidden = max(gains["ciphertext", name].high for name in attacks)
    return Result(
        control={"images": count, "data": found.name, **off},
        defended={"images": count, "data": found.name, **on},
        control_worked=all(
            intervals.mean(likeness["clear", name].own).low > 0.9 and gains["clear", name].low > _ALIKE
            for name in attacks
        ),
        held=all(gains["ciphertext", name].holds(0.0) for name in attacks) and hidden < _ALIKE,
        plain=f"From an update in clear the attacker redraws the patient's image (SSIM {own.value:.2f} of 1); from the "
        f"encrypted update that the coordinator holds it gets an image no liker to the patient's than to any other's.",
        pictures=_side_by_side(true, made["clear", "Geiping"], made["ciphertext", "Geiping"]),
        notes=[
            "The attacker is helped: one patient, one step, known label and weights, and no differential privacy. What "
            "the ciphertext hides rests on Hint-RLWE (docs/quorum.md), not on this figure."
        ],
    )


ROW = Row(
    id="T01",
    title="Gradient inversion: images from one hospital's update",
    adversary="The coordinator, who knows the model's weights and what a round is, and follows the protocol",
    holds="What a real coordinator process stored of the upload over mutual TLS: the ciphertext's bytes",
    source="DLG: Zhu, Liu and Han, NeurIPS 2019; Inverting Gradients: Geiping, Bauermeister, Droege and Moeller, "
    "NeurIPS 2020",
    metric="SSIM of each reconstruction with its own image, less its mean SSIM with the other images",
    passes="In clear the mean SSIM is above 0.9; from the ciphertext the 99.9 % interval of the difference holds 0 and "
    "ends below 0.15",
    seeds=(1,),
    fast_seconds=45,
    full_seconds=110,
    run=run,
)
