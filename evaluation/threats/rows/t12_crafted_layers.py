"""A coordinator hands out a model that writes patients' images into its gradient."""

from __future__ import annotations

import numpy as np

from cipherward.crypto.transcript import model_digest
from cipherward.errors import VerificationError
from cipherward.evaluation.threats.attacks import images, imprint, intervals, vision
from cipherward.evaluation.threats.attacks.images import ImageSet, Pixels
from cipherward.evaluation.threats.bypass import replaced
from cipherward.evaluation.threats.kit.hospital import (
    NAMES,
    PARAMETERS,
    STUDY,
    Hospitals,
    PlayedCoordinator,
    client_of,
)
from cipherward.evaluation.threats.plots import images as pictures
from cipherward.evaluation.threats.row import Case, Context, Picture, Result, Row
from cipherward.evaluation.threats.statistics import proportion
from cipherward.site_agent.daemon import admission
from cipherward.site_agent.ledger.accounting import calibrate_noise
from cipherward.site_agent.state import models
from cipherward.site_agent.training.constants import SgdConstants

_UNITS, _BATCH = 256, 32
_EPSILON, _DELTA, _CLIP = 8.0, 1e-5, 1.0
_RARE = 0.1


def _handed_out(context: Context) -> Case:
    """Other initial weights than the manifest's, to a real agent: with its checks out, and as shipped."""
    world = Hospitals(context.folder / "consortium")
    signed, trust = world.manifest(np.zeros(PARAMETERS, dtype=np.float32))
    pinned = trust.manifest.initial_weights_digest
    other = np.linspace(-1, 1, PARAMETERS, dtype=np.float32)
    played = PlayedCoordinator([signed], other.astype("<f4").tobytes())
    with (
        world.agent(NAMES[0]) as site,
        replaced(admission, "model_digest", lambda _: pinned),
        replaced(models, "model_digest", lambda _: pinned),
    ):
        admission.admit(site, client_of(played), STUDY, trust.digest)
        taken = bool((site.models.get(pinned) == other).all())
    refused = ""
    with world.agent(NAMES[1]) as site:
        try:
            admission.admit(site, client_of(played), STUDY, trust.digest)
        except VerificationError as error:
            refused = error.what
        kept = site.models.path(model_digest(other)).exists()
    return Case(
        "crafted initial weights handed to an agent",
        "it would train from them" if taken else "not taken",
        taken,
        refused or "admitted",
        bool(refused) and not kept,
    )


def _attack(
    found: ImageSet, batches: list[np.ndarray], task: vision.VisionTask, start: np.ndarray, sgd: SgdConstants
) -> tuple[int, Pixels]:
    """How many images of the batches are recovered, and for each of the first batch the likest that was found."""
    recovered, nearest = 0, list[Pixels]()
    for batch in batches:
        victims = found.take(batch)
        update = vision.update(task, vision.records(victims), start, sgd)
        read = imprint.read_images(vision.as_gradient(update, sgd), _UNITS, found.side)
        recovered += imprint.recovered(read, victims.pixels)
        if not nearest:
            nearest = [read[np.argmax([images.psnr(one, image) for one in read])] for image in victims.pixels]
    return recovered, np.stack(nearest)


def run(context: Context) -> Result:
    """The agent's refusal, and what the attack gets of a site that trains from such a model after all."""
    case = _handed_out(context)
    found = images.chosen()
    rng = np.random.default_rng(context.seed)
    order = rng.permutation(len(found.labels))
    public, victims = np.split(order, [len(order) // 2])
    count = (8 if context.fast else 24) * _BATCH
    batches = list(victims[:count].reshape(-1, _BATCH))
    task = vision.VisionTask(found, _UNITS)
    start = imprint.crafted(task, found.pixels[public])
    sigma = calibrate_noise(_EPSILON, _DELTA, 1.0, 1)
    context.note("reading images out of updates")
    off, clear = _attack(found, batches, task, start, vision.plain_step(_BATCH))
    on, noisy = _attack(found, batches, task, start, vision.private_step(_BATCH, _CLIP, sigma))
    share, private = (proportion(number, count, intervals.SURE) for number in (off, on))
    shown: list[Picture] = []
    for place in range(3):
        row = {
            "the patient's image": found.pixels[batches[0][place]],
            "read without privacy": clear[place],
            "read with it": noisy[place],
        }
        shown += pictures(f"image {place + 1}", row, pixels=90)
    return Result(
        control={
            "images": count,
            "data": found.name,
            "share with PSNR above 20 dB": share,
            case.name: case.control,
        },
        defended={
            case.name: case.defended,
            "epsilon of the round": _EPSILON,
            "noise multiplier": sigma,
            "share with PSNR above 20 dB, trained on it after all": private,
        },
        control_worked=case.control_worked and share.low > 0.3,
        held=case.held and private.high < _RARE,
        plain=f"A hospital that trained on a crafted model without privacy would give away {share.value:.0%} of its "
        f"images; the agent refuses such a model, and even if it took it, with differential privacy (epsilon "
        f"{_EPSILON:g}) {on} of {count} images come out.",
        cases=[case],
        pictures=shown,
        notes=[
            "The model is pinned by the manifest's digest and after that made by the sites themselves. An organiser "
            "who signs a crafted model into the manifest is not stopped by this; differential privacy then is what is "
            "left, and a task whose code a hospital has read.",
            intervals.seen_above(_RARE, "share of images that come out", private),
        ],
    )


ROW = Row(
    id="T12",
    title="Crafted model layers",
    adversary="A coordinator that hands out another model than the study's",
    holds="The update of a hospital in clear: more than it ever has here",
    source="Robbing the Fed: Fowl, Geiping, Czaja, Goldblum and Goldstein, ICLR 2022; "
    "MedLeak (first MediLeak): Shi et al., arXiv 2407.09972",
    metric="Whether an agent takes the model; share of images that come out with a PSNR above 20 dB",
    passes="The agent refuses it; with the check taken out and differential privacy on, the 99.9 % interval of the "
    "share ends below 0.1, where it begins above 0.3 without",
    seeds=(12,),
    fast_seconds=20,
    full_seconds=30,
    run=run,
)
