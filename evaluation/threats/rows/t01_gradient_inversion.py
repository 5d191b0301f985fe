"""One hospital's update, in clear and as the coordinator has it, under gradient inversion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cipherward.crypto.quorum.chunks import ChunkEncryptor
from cipherward.crypto.quorum.params import DEGREE
from cipherward.evaluation.threats.attacks import images, intervals, inversion, vision
from cipherward.evaluation.threats.attacks.ciphertext import read_as_numbers
from cipherward.evaluation.threats.attacks.images import Likeness, Pixels
from cipherward.evaluation.threats.bypass import replaced
from cipherward.evaluation.threats.kit.stored_uploads import stored_uploads
from cipherward.evaluation.threats.plots import images as pictures
from cipherward.evaluation.threats.row import Context, Interval, Picture, Result, Row
from cipherward.site_agent.training.constants import SgdConstants

_ALIKE = 0.15
"""SSIM by which a reconstruction may be liker to its own image than to others before it counts as one."""
_SHOWN = 3
_UNMASKED = 8
"""Hospitals of the control whose uploads have no mask."""


def _read(
    folder: Path, updates: Sequence[NDArray[np.float32]], start: NDArray[np.float32], constants: SgdConstants
) -> NDArray[np.float64]:
    """What a real coordinator stored of the updates, (n, P), taken for the gradients that they would be in clear."""
    params, stored = stored_uploads(folder, updates, start)
    read = np.stack([read_as_numbers(params, chunks, len(start)) for chunks in stored])
    return vision.as_gradient(read, constants)


def _unmasked(self: Any, batch: Any, bounds: Sequence[int]) -> NDArray[np.float64]:
    """In the place of a s: an upload is then the update and its errors, and all else is as shipped."""
    return np.zeros((bounds[-1], DEGREE))


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
    stored = _read(context.folder / "service", updates, start, constants)
    context.note(f"{_UNMASKED} hospitals upload without a mask")
    with replaced(ChunkEncryptor, "product", _unmasked):
        bare = _read(context.folder / "unmasked", updates[:_UNMASKED], start, constants)

    gradients = inversion.gradients_of(task, start)
    views = {"clear": vision.as_gradient(seen, constants), "unmasked": bare, "ciphertext": stored}
    attacks = {"Geiping": inversion.geiping, "DLG": inversion.dlg}
    made: dict[tuple[str, str], Pixels] = {}
    likeness: dict[tuple[str, str], Likeness] = {}
    for view, gradient in views.items():
        for name, attack in attacks.items():
            many = len(gradient)
            context.note(f"{name} on {many} updates, {view}")
            made[view, name] = attack(gradients, gradient, labels[:many], found.side, seed=context.seed)
            likeness[view, name] = images.compare(made[view, name], true[:many])
    off, bare_figures, on = (
        {key: value for name in attacks for key, value in _figures(name, likeness[view, name]).items()}
        for view in views
    )
    off |= {f"stored without a mask, {key}": value for key, value in bare_figures.items()}
    gains = {key: intervals.mean(one.gain) for key, one in likeness.items()}
    own = intervals.mean(likeness["clear", "Geiping"].own)
    widest = max((gains["ciphertext", name] for name in attacks), key=lambda one: one.high)
    return Result(
        control={"images": count, "data": found.name, **off},
        defended={"images": count, "data": found.name, **on},
        control_worked=all(
            intervals.mean(likeness[view, name].own).low > 0.9 and gains[view, name].low > _ALIKE
            for view in ("clear", "unmasked")
            for name in attacks
        ),
        held=all(gains["ciphertext", name].holds(0.0) for name in attacks) and widest.high < _ALIKE,
        plain=f"From an update in clear the attacker redraws the patient's image (SSIM {own.value:.2f} of 1); from the "
        f"encrypted update that the coordinator holds it gets an image no liker to the patient's than to any other's. "
        f"Were uploads not masked, the same reading of the same files would redraw it.",
        pictures=_side_by_side(true, made["clear", "Geiping"], made["ciphertext", "Geiping"]),
        notes=[
            "The attacker is helped: one patient, one step, known label and weights, and no differential privacy. What "
            "the ciphertext hides rests on Hint-RLWE (docs/quorum.md), not on this figure.",
            intervals.seen_above(_ALIKE, "gain in SSIM", widest),
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
    passes="In clear, and from what the coordinator stored of uploads without a mask, the mean SSIM is "
    "above 0.9; from the ciphertext the 99.9 % interval of the difference holds 0 and "
    "ends below 0.15",
    seeds=(1,),
    fast_seconds=55,
    full_seconds=120,
    run=run,
)
