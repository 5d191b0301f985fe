"""T05: a coordinator process that hands out one hospital's upload as "the sum", so that the other hospitals open it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cipherward.crypto.quorum.chunks import ChunkOpener
from cipherward.crypto.suites.payload import Layout, split
from cipherward.errors import CipherwardError
from cipherward.evaluation.threats.bypass import replaced
from cipherward.evaluation.threats.kit.made_up import MadeUpSite, begin, vectors
from cipherward.evaluation.threats.kit.service import Service, study_file
from cipherward.evaluation.threats.plots import OFF, ON, plot
from cipherward.evaluation.threats.row import Case, Context, Figure, Interval, Result, Row
from cipherward.site_agent.training.metrics import METRICS

NAMES = ("alpha", "beta", "gamma", "delta")
VICTIM, READER = "alpha", "beta"
KINDS = {"raw-sum": "the upload itself", "scaled-sum": "the upload, times the cohort's size"}


def _opened(sites: list[MadeUpSite], plan: Any) -> tuple[NDArray[np.float64] | None, str]:
    """What ``READER`` makes of the sum: values that it would apply, or the reason for which it does not."""
    reader = next(site for site in sites if site.name == READER)
    layout = Layout(reader.trust.manifest.parameter_count, METRICS)
    try:
        opened = reader.open(1, plan)
        split(layout, opened, len(sites), reader.params)
    except CipherwardError as error:
        return None, str(error)
    return opened, ""


def _believing(sites: list[MadeUpSite], plan: Any) -> NDArray[np.float64]:
    """What it opens without the checks of the opened sum."""
    reader = next(site for site in sites if site.name == READER)
    with replaced(ChunkOpener, "_check_zero", lambda self, opened: None):
        return reader.open(1, plan)


def _round(context: Context, suite: str, kind: str) -> tuple[Case, dict[str, Figure], dict[str, Figure]]:
    with Service(context.folder / f"{suite}-{kind}", NAMES, (kind,)) as service:
        service.start()
        trust = service.study(study_file(suite, NAMES[0], minimum=4))
        sites = begin([service.member(name) for name in NAMES], service.address, trust)
        for site in sites:
            site.join(1)
        sent = vectors(NAMES, sites[0].length, context.seed)
        plan = sites[0].plan(1)
        for site in sites:
            site.contribute(1, sent[site.name])
        if sites[0].one_time:
            for site in sites:
                site.acknowledge(1, plan)
            for site in sites:
                site.answer(1, plan)
        blind = _believing(sites, plan)
        opened, told = _opened(sites, plan)
    exact = np.sum([sent[name].astype(np.float64) for name in NAMES], axis=0)
    factor = 1 if kind == "raw-sum" else len(NAMES)
    stolen = float(np.abs(blind / factor - sent[VICTIM]).max())
    wrong = float(np.abs(blind - exact).max())
    bound = trust.params.error_bound(len(NAMES))
    name = f"{suite}: {KINDS[kind]}"
    shown = stolen <= bound
    control = (
        f"the other hospitals read {VICTIM}'s update, to {stolen:.2g}"
        if shown
        else f"a wrong sum would be applied, off by {wrong:.3g} where the error bound is {bound:.2g}"
    )
    case = Case(
        name,
        control=control,
        control_worked=wrong > 10 * bound,
        defended=told or f"believed: {VICTIM}'s update is read, and a wrong sum is applied",
        held=opened is None,
    )
    return case, {f"deviation from the sum, {name}": wrong}, {f"believed, {name}": opened is not None}


def run(context: Context) -> Result:
    """Two suites, two kinds."""
    cases, control, defended = [], {}, {}
    for suite in ("quorum", "shared-key"):
        for kind in KINDS:
            context.note(f"{suite}, {kind}")
            case, off, on = _round(context, suite, kind)
            cases.append(case)
            control.update(off)
            defended.update(on)
    # The design says so, SECURITY.md and the trust statement of every shared-key study as well.
    open_case = next(case for case in cases if case.name.startswith("shared-key: the upload, times"))
    stated = replace(
        open_case,
        defended="OPEN, as stated for this suite: " + open_case.defended if not open_case.held else "refused",
        held=True,
    )
    cases = [stated if case is open_case else case for case in cases]
    result = Result.of_cases(
        cases,
        "One hospital's upload passed off as the sum is refused by the other hospitals in both suites. Multiplied by "
        "the number of hospitals it is refused in the quorum suite; in the shared-key suite it passes, and the others "
        "read that hospital's noised update: a stated limit of that suite.",
        control=control,
        defended=defended,
        pictures=[plot("How far what was opened is from the sum, with the checks taken out", _draw(control))],
        notes=(
            "The scaled upload in the shared-key suite is a residual risk (docs/threat-model.md). That suite must be "
            "chosen by name, and a hospital's policy refuses it unless it lists it.",
        ),
    )
    refused = sum(isinstance(value, bool) and not value for value in defended.values())
    return replace(result, defended={**result.defended, "refused": refused})


def _draw(control: dict[str, Figure]) -> Any:
    def draw(axes: Any) -> None:
        names = [name.removeprefix("deviation from the sum, ") for name in control]
        colours = [ON if name.startswith("quorum") else OFF for name in names]
        axes.barh(
            names,
            [float(value) for value in control.values() if not isinstance(value, Interval)],
            color=colours,
        )
        axes.set_xscale("log")
        axes.set_xlabel("largest deviation")

    return draw


ROW = Row(
    id="T05",
    title="a peer's raw upload passed off as the sum",
    adversary="The coordinator, which wants hospitals to open one upload for each other, or to apply a wrong sum.",
    holds="All ciphertexts, no key.",
    source="Our own review; for aggregation in general: Pasquini, Francati, Ateniese, CCS 2022.",
    metric="whether an honest hospital believes what it opened",
    passes="the raw upload is refused in both suites, the scaled one in the quorum suite; in the shared-key suite "
    "that one is open, and said to be",
    seeds=(5,),
    fast_seconds=30,
    full_seconds=30,
    run=run,
)
