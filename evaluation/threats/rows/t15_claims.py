"""T15: a hospital's false claims, against an average weighted by what hospitals claim, and against a real round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cipherward.crypto.suites.payload import Layout, build, split
from cipherward.errors import LimitError, VerificationError
from cipherward.evaluation.threats.kit.made_up import MadeUpSite, begin, finish, vectors
from cipherward.evaluation.threats.kit.service import Service, study_file
from cipherward.evaluation.threats.row import Case, Context, Result, Row
from cipherward.site_agent.strategy.fedavg import STRATEGY
from cipherward.site_agent.training.metrics import METRICS

NAMES = ("alpha", "beta", "gamma", "delta")
LIAR = "alpha"
CLAIM = 1e9
HONEST_SAMPLES = 200.0
AIMED = 0
"""The coordinate of the model that an oversized update aims at."""
Vectors = dict[str, NDArray[np.float32]]


def _claimed_samples(sent: Vectors) -> float:
    """Control: federated averaging as McMahan et al. (2017) weight it, by the number of samples that each site says
    it has. How far the average stays from the liar's own update, over how far it is when the liar says the truth."""

    def average(claim: float) -> NDArray[np.float64]:
        weights = [claim if name == LIAR else HONEST_SAMPLES for name in sent]
        return np.average([one.astype(np.float64) for one in sent.values()], axis=0, weights=weights)

    apart = [float(np.linalg.norm(average(claim) - sent[LIAR])) for claim in (CLAIM, HONEST_SAMPLES)]
    return apart[0] / apart[1]


def _summed(sent: Vectors, value: float) -> float:
    """Control: a plain sum of what is sent, at the coordinate that is aimed at."""
    lied = sent[LIAR].astype(np.float64)
    lied[AIMED] = value
    return float(sum(one[AIMED] for name, one in sent.items() if name != LIAR) + lied[AIMED])


def _adding(params: Any, place: int, value: float) -> Callable[[list[bytes]], list[bytes]]:
    """What a site without our checks sends: its ciphertext with ``value`` added to one value, in integers as there are
    no others."""

    def edit(chunks: list[bytes]) -> list[bytes]:
        residues = np.frombuffer(chunks[0], params.residue).astype(np.int64)
        # A ring element's coefficients travel in natural order of values.
        residues[place] = (int(residues[place]) + round(value * params.scale)) % params.modulus
        return [residues.astype(params.residue).tobytes(), *chunks[1:]]

    return edit


def _lied(
    context: Context, name: str, place: int, value: float
) -> tuple[NDArray[np.float64], Vectors, MadeUpSite]:
    """A whole round at a real coordinator in which the liar adds ``value`` to the value at ``place``."""
    with Service(context.folder / name, NAMES) as service:
        service.start()
        trust = service.study(study_file("quorum", ""))
        sites = begin([service.member(one) for one in NAMES], service.address, trust)
        for site in sites:
            site.join(1)
        sent, plan = vectors(NAMES, sites[0].length, context.seed), sites[0].plan(1)
        for site in sites:
            edit = _adding(site.params, place, value) if site.name == LIAR else list
            made = site.encrypt(1, plan, sent[site.name], edit=edit)
            site.upload(made)
            site.commit(made)
        return finish(sites, 1, plan), sent, sites[0]


def _refused(action: Callable[[], object]) -> str:
    try:
        action()
    except (LimitError, VerificationError) as error:
        return str(error)
    return ""


def run(context: Context) -> Result:
    """Samples, NaN, norm; by an honest agent that was given bad data, and by a site that lies."""
    layout = Layout(23, METRICS)
    sent = vectors(NAMES, layout.length, context.seed)
    exact = np.sum([one.astype(np.float64) for one in sent.values()], axis=0)
    cases: list[Case] = []

    context.note("a billion samples")
    opened, _, site = _lied(context, "samples", layout.length - 2, CLAIM)
    params: Any = site.params
    cap = params.modulus / 2 / params.scale
    applied = split(layout, opened, len(NAMES), site.params).update
    start = np.zeros(layout.parameters, dtype=np.float32)
    models = [
        STRATEGY.server_step(start, one, site.trust.manifest, NAMES)
        for one in (applied, exact[: layout.parameters])
    ]
    model_off = float(np.abs(models[0] - models[1]).max())
    metric = float(opened[layout.length - 2])
    left = _claimed_samples(sent)
    cases.append(
        Case(
            f"a claim of {CLAIM:.0e} samples",
            control=f"{left:.1e} of the others' updates is left in the average",
            control_worked=left < 1e-5,
            defended=f"weights are the manifest's: the model that sites make of the sum is off by {model_off:.1e} "
            f"(error bound {params.error_bound(4):.1e}); the claimed count reads {metric:.4g} and cannot "
            f"exceed {cap:.4g}",
            held=float(np.abs(models[1]).max()) > 0.1
            and model_off <= params.error_bound(4)
            and abs(metric) <= cap,
        )
    )

    context.note("an oversized update")
    opened, _, _ = _lied(context, "norm", AIMED, CLAIM)
    off = np.abs(opened - exact)
    others = float(np.delete(off, AIMED).max())
    cases.append(
        Case(
            f"an update of {CLAIM:.0e} sent by a site without our checks",
            control=f"the sum is {_summed(sent, CLAIM):.3g}",
            control_worked=_summed(sent, CLAIM) > 0.9 * CLAIM,
            defended=f"the coordinate reads {opened[AIMED]:.4g}, off by {off[AIMED]:.4g}, and lies within {cap:.4g} "
            f"whatever is sent ({len(NAMES)} sites at their bound make {len(NAMES) * params.bound:g}); all others "
            f"are off by {others:.1e}",
            held=bool(abs(opened[AIMED]) <= cap)
            and others <= params.error_bound(4)
            and cap < 2.1 * len(NAMES) * params.bound,
        )
    )
    wild = np.zeros(layout.parameters, np.float32)
    wild[AIMED] = CLAIM
    clipped = build(layout, wild, np.zeros(METRICS), params.bound)
    cases.append(
        Case(
            f"an update of {CLAIM:.0e} in an honest agent",
            control=f"the sum is {_summed(sent, CLAIM):.3g}",
            control_worked=_summed(sent, CLAIM) > 0.9 * CLAIM,
            defended=f"clipped to {float(clipped[AIMED]):g}",
            held=bool(0 < np.abs(clipped).max() <= params.bound),
        )
    )
    for value in (np.nan, np.inf):
        wild[AIMED] = value
        told = _refused(lambda: build(layout, wild, np.zeros(METRICS), params.bound))
        summed = _summed(sent, float(value))
        cases.append(
            Case(
                f"{value} in an update",
                control=f"the sum is {summed}",
                control_worked=not np.isfinite(summed),
                defended=told or "encrypted",
                held=bool(told),
            )
        )
    context.note("a count that is no sum's")
    opened, _, site = _lied(context, "constant", layout.length - 1, 1.0)
    told = _refused(lambda: split(layout, opened, len(NAMES), site.params))
    cases.append(
        Case(
            "an update that counts itself twice",
            control=f"the count reads {float(opened[-1]):.3f} for {len(NAMES)} sites, and without the check is taken",
            control_worked=bool(opened[-1] > len(NAMES) + 0.5),
            defended=told or "believed",
            held=bool(told),
        )
    )
    return Result.of_cases(
        cases,
        f"A claim of a billion samples leaves {left:.0e} of the others in an average that is weighted by claims; "
        "here it moves no weight of the model. An oversized value is clipped by an honest agent; from a "
        f"dishonest one it leaves one coordinate of the sum wrong, somewhere within {cap:.0f}, and no other; NaN "
        "is refused.",
        defended={"most that any value of the sum can be": cap},
        notes=(
            "A dishonest hospital can still send any update within that range: poisoning is out of scope, and nobody "
            "can look into an update.",
        ),
    )


ROW = Row(
    id="T15",
    title="a site's false claims: a billion samples, NaN, an oversized norm",
    adversary="A dishonest hospital, or a broken one.",
    holds="Its own keys, and software without our checks.",
    source="Reproduced on NVIDIA FLARE 2.9.0 (2026): claiming 1e9 steps zeroes the round. FedAvg: McMahan et al. 2017.",
    metric="how far the model and single values of the sum move",
    passes="no weight follows from a claim, every value stays within the encoding's range, NaN is refused",
    seeds=(15,),
    fast_seconds=15,
    full_seconds=20,
    run=run,
)
