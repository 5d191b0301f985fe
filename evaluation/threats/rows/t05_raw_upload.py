"""T05: a coordinator process that hands out one upload as "the sum", to real agents, which open it or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cipherward.evaluation.threats.kit.attacked import Attacked
from cipherward.evaluation.threats.plots import OFF, ON, plot
from cipherward.evaluation.threats.row import Case, Context, Figure, Interval, Result, Row

SUITES = {"quorum": "quorum", "shared": "shared-key"}
KINDS = {"raw": "the upload itself", "scaled": "the upload, times the cohort's size"}
OPEN = "shared-scaled"
"""The study whose attack works, as SECURITY.md and the trust statement of every shared-key study say."""


@dataclass(frozen=True)
class _Seen:
    """What became of one study."""

    believed: int
    """Agents that applied what they opened."""
    refusal: str
    stolen: float
    """How far what another hospital opened, divided by the factor, is from the victim's update; inf: not opened."""
    wrong: float
    """How far it is from the sum of what was sent."""
    bound: float

    @property
    def read(self) -> bool:
        """Whether another hospital has the victim's update."""
        return self.stolen <= self.bound


def _seen(attacked: Attacked, study: str, trust: Any) -> _Seen:
    victim = trust.manifest.roster[0].name  # its chunks come first
    reader = next(name for name in attacked.names if name != victim)
    sent = {name: attacked.sent(name, study) for name in attacked.names}
    opened = attacked.opened(reader, study)
    exact = np.sum(list(sent.values()), axis=0)
    factor = len(sent) if "scaled" in study else 1
    stolen = wrong = float("inf")
    if opened is not None:
        stolen = float(np.abs(opened / factor - sent[victim]).max())
        wrong = float(np.abs(opened - exact).max())
    said = {name: attacked.incidents(name, study) for name in attacked.names}
    believed = [name for name in attacked.names if attacked.applied(name, study)]
    refusals = [said[name][-1] for name in attacked.names if name not in believed]
    return _Seen(len(believed), min(refusals, default=""), stolen, wrong, trust.params.error_bound(len(sent)))


def _studies() -> dict[str, tuple[str, bool]]:
    """By name, the suite, and whether the sites verify sums collectively."""
    made = {}
    for short, suite in SUITES.items():
        for kind in KINDS:
            made[f"{short}-{kind}"] = (suite, suite == "quorum")
            if f"{short}-{kind}" != OPEN:
                made[f"blind-{short}-{kind}"] = (suite, False)
            if suite == "quorum":
                made[f"alone-{short}-{kind}"] = (suite, False)
    return made


def _attack(context: Context) -> dict[str, _Seen]:
    """All studies at once, by the same agents: by name, what became of it."""
    changes = ("keeps-vectors", "unchecked-sums")
    with Attacked(context.folder / "hospitals", ("wrong-sums",), changes) as attacked:
        attacked.start()
        trusts = {}
        for name, (suite, verified) in _studies().items():
            options = {} if suite != "quorum" else {"collective_verification": verified}
            trusts[name] = attacked.study(name, suite, **options)
        for name in trusts:
            context.note(f"the agents' verdicts on {name}")
            attacked.wait(lambda name=name: attacked.decided(name), f"a verdict on {name}")  # type: ignore[misc]
        return {name: _seen(attacked, name, trust) for name, trust in trusts.items()}


def _case(name: str, seen: _Seen, blind: _Seen) -> Case:
    short, _, kind = name.removeprefix("alone-").partition("-")
    alone = ", without collective verification" if name.startswith("alone-") else ""
    if blind.read:
        control = f"{blind.believed} agents believe it and read one hospital's update, to {blind.stolen:.2g}"
    else:
        control = (
            f"{blind.believed} agents apply a wrong sum, off by {blind.wrong:.3g} (bound {blind.bound:.2g})"
        )
    worked = blind.believed > 0 and (blind.read or blind.wrong > 10 * blind.bound)
    if name == OPEN:
        works = blind.read and blind.believed == 4
        told = "OPEN, as documented for this suite: the other hospitals read that hospital's update"
        other = f"it no longer works ({seen.refusal or 'not read'}): the documentation that calls it open is wrong"
        return Case(f"{SUITES[short]}: {KINDS[kind]}", control, worked, told if works else other, works)
    return Case(
        f"{SUITES[short]}{alone}: {KINDS[kind]}",
        control=control,
        control_worked=worked,
        defended=f"{seen.believed} of 4 agents believe it; they say: {seen.refusal}"[:400],
        held=seen.believed == 0 and bool(seen.refusal),
    )


def run(context: Context) -> Result:
    """Two suites, two kinds; the same agents, with their checks of opened sums taken out in the control studies."""
    seen = _attack(context)
    cases, control, defended = [], {}, {}
    for name, found in seen.items():
        if name.startswith("blind-"):
            continue
        blind = seen.get("blind-" + name.removeprefix("alone-"), found)
        case = _case(name, found, blind)
        cases.append(case)
        control[f"deviation from the sum, {case.name}"] = blind.wrong
        defended[f"agents that believe it, {case.name}"] = found.believed
    return Result.of_cases(
        cases,
        "One hospital's upload passed off as the sum is refused by every real agent in both suites. Multiplied by the "
        "number of hospitals it is refused in the quorum suite; in the shared-key suite it passes, and the others read "
        "that hospital's noised update: a stated limit of that suite.",
        control={name: value for name, value in control.items() if np.isfinite(value)},
        defended=defended,
        pictures=[plot("How far what was opened is from the sum, with the checks taken out", _draw(control))],
        notes=(
            "The scaled upload in the shared-key suite is a residual risk (docs/threat-model.md). The row fails when "
            "it stops working, so that the documentation is corrected. That suite must be chosen by name, and a "
            "hospital's policy refuses it unless it lists it.",
        ),
    )


def _draw(control: Mapping[str, Figure]) -> Any:
    def draw(axes: Any) -> None:
        found = {
            name.removeprefix("deviation from the sum, "): float(value)
            for name, value in control.items()
            if not isinstance(value, Interval) and np.isfinite(float(value))
        }
        axes.barh(
            list(found),
            list(found.values()),
            color=[ON if name.startswith("quorum") else OFF for name in found],
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
    metric="real agents that believe what they opened",
    passes="the raw upload is refused in both suites, the scaled one in the quorum suite, by every agent; in the "
    "shared-key suite that one works, as documented",
    seeds=(5,),
    fast_seconds=40,
    full_seconds=40,
    run=run,
)
