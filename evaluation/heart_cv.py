"""Does a hospital gain by taking part? Repeated stratified train/test splits of UCI Heart Disease, four arms.

    python -m cipherward.evaluation.heart_cv --repeats 100 --json FILE

Every repeat draws another third of each hospital's patients for testing (of each label alike) and trains
anew, with fresh privacy noise: federated, each hospital alone, and all patients pooled, all three with the
study's privacy, and pooled without. AUC is measured on each hospital's own test patients.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from scipy.stats import t as student_t

from cipherward.durable import write_file
from cipherward.errors import CipherwardError, UsageError
from cipherward.evaluation import baselines
from cipherward.evaluation.baselines import SiteData, Weights
from cipherward.site_agent.ledger.accounting import epsilon
from cipherward.site_agent.tasks.base import Split
from cipherward.site_agent.tasks.heart_disease import HeartDisease, to_records
from cipherward.site_agent.tasks.heart_disease.data import HOSPITALS, TEST_FRACTION, rows
from cipherward.site_agent.tasks.heart_disease.defaults import HEART_STUDY, StudyDefaults
from cipherward.site_agent.training import weights

ARMS = ("federated", "alone", "pooled", "pooled_without_privacy")
_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean difference of AUC and its confidence interval."""

    mean: float
    low: float
    high: float


def hospitals(seed: int) -> list[SiteData]:
    """The four hospitals, split by ``seed`` (0 is the split that studies use)."""
    return [
        SiteData(
            name,
            to_records(rows(f"builtin:{name}", Split.TRAIN, seed=seed)),
            to_records(rows(f"builtin:{name}", Split.TEST, seed=seed)),
        )
        for name in HOSPITALS
    ]


def corrected_interval(differences: NDArray[np.float64], test_fraction: float) -> Interval:
    """The corrected resampled t interval of Nadeau and Bengio (Machine Learning 52, 2003).

    ``differences``: one a repeat, paired, shape (R,), R >= 2. Repeats share patients, so the variance of
    their mean is taken as (1/R + test/train) times that of one difference in the place of 1/R: no number of
    repeats makes up for having only these patients. Raises UsageError for fewer than two.
    """
    repeats = len(differences)
    if repeats < 2:
        raise UsageError("an interval needs at least two repeats", fix="Use --repeats 20 or more")
    inflation = 1 / repeats + test_fraction / (1 - test_fraction)
    spread = math.sqrt(inflation * float(differences.var(ddof=1)))
    half = float(student_t.ppf((1 + _CONFIDENCE) / 2, repeats - 1)) * spread
    mean = float(differences.mean())
    return Interval(mean, mean - half, mean + half)


def one_repeat(sites: Sequence[SiteData], study: StudyDefaults, sigma: float) -> NDArray[np.float64]:
    """AUC of each arm at each hospital, shape (arms, hospitals)."""
    task = HeartDisease()
    start = weights.initial(task, 0)
    private, plain = study.private(sigma), study.plain()
    together: dict[str, Weights] = {
        "federated": baselines.federated(task, sites, start, study.rounds, private),
        "pooled": baselines.pooled(task, sites, start, study.rounds, private),
        "pooled_without_privacy": baselines.pooled(task, sites, start, study.rounds, plain),
    }
    table = []
    for arm in ARMS:
        row = []
        for site in sites:
            own = together.get(arm)
            if own is None:
                own = baselines.alone(task, site, start, study.rounds, private)
            auc = baselines.evaluate(task, own, site.test).auc
            row.append(math.nan if auc is None else auc)
        table.append(row)
    return np.array(table)


def cross_validate(
    study: StudyDefaults, repeats: int, progress: Callable[[int], None] = lambda _: None
) -> dict[str, Any]:
    """The whole study, as written to JSON. Split seeds are 1..repeats. Raises UsageError for fewer than
    two."""
    sigma = study.noise_multiplier()
    tables = []
    for seed in range(1, repeats + 1):
        tables.append(one_repeat(hospitals(seed), study, sigma))
        progress(seed)
    auc = np.array(tables)
    gain = auc[:, ARMS.index("federated")] - auc[:, ARMS.index("alone")]
    found = {}
    for index, name in enumerate([*HOSPITALS, "mean"]):
        column = auc.mean(axis=2) if name == "mean" else auc[:, :, index]
        difference = gain.mean(axis=1) if name == "mean" else gain[:, index]
        found[name] = {
            "auc": {arm: float(column[:, number].mean()) for number, arm in enumerate(ARMS)},
            "gain": asdict(corrected_interval(difference, TEST_FRACTION)),
            "repeats_with_gain": float((difference > 0).mean()),
        }
    return {
        "repeats": repeats,
        "split_seeds": [1, repeats],
        "interval": "95 %, corrected resampled t (Nadeau and Bengio 2003), federated minus alone, paired",
        "study": asdict(study),
        "noise_multiplier": sigma,
        "epsilon_spent": epsilon(study.events(sigma), study.delta),
        "hospitals": found,
    }


def report(result: dict[str, Any]) -> str:
    """The result as a table for people."""
    lines = [
        f"{result['repeats']} repeats; epsilon {result['epsilon_spent']:.2f} at delta "
        f"{result['study']['delta']:g} for each patient over {result['study']['rounds']} rounds with metrics",
        "",
        f"{'AUC':15} {'federated':>10} {'alone':>8} {'pooled':>8} {'no privacy':>11}   gain (95 % CI)",
    ]
    for name, row in result["hospitals"].items():
        auc, gain = row["auc"], row["gain"]
        lines.append(
            f"{name:15} {auc['federated']:10.3f} {auc['alone']:8.3f} {auc['pooled']:8.3f}"
            f" {auc['pooled_without_privacy']:11.3f}   {gain['mean']:+.3f}"
            f" ({gain['low']:+.3f} to {gain['high']:+.3f})"
        )
    return "\n".join([*lines, "", f"Interval: {result['interval']}."])


def _show_progress(done: int, repeats: int) -> None:
    if sys.stderr.isatty():
        typer.echo(f"\r{done}/{repeats}", nl=done == repeats, err=True)


def main(
    repeats: Annotated[int, typer.Option(min=2, help="How many splits.")] = 100,
    target: Annotated[
        float, typer.Option("--epsilon", min=0.01, help="Over the whole study, for each patient.")
    ] = HEART_STUDY.epsilon,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
) -> None:
    """Cross-validate the heart-disease study. Example: heart_cv --repeats 100 --json heart.json"""
    try:
        result = cross_validate(
            replace(HEART_STUDY, epsilon=target),
            repeats,
            lambda done: _show_progress(done, repeats),
        )
        typer.echo(report(result))
        if json_file is not None:
            write_file(json_file, json.dumps(result, indent=2).encode() + b"\n")
    except CipherwardError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(error.exit_status) from error


if __name__ == "__main__":
    typer.run(main)
