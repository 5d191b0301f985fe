"""Does a hospital gain by taking part? UCI Heart Disease: repeated splits, and one hospital held out.

    python -m cipherward.evaluation.heart_cv --repeats 100 --json FILE

Every repeat draws another third of each hospital's patients for testing (of each label alike) and trains anew, with
fresh privacy noise: each hospital alone, federated averaging with local noise, dp-fedsgd, and all patients pooled, at
the same privacy, and pooled without. AUC is measured on each hospital's own test patients (in distribution). Then
each hospital in turn stays away: the others train, and AUC is measured on all of its patients (external); ``alone``
is there the mean of the other hospitals' own models. Each arm trains with constants of its own (``heart_constants``).
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.table import Table

from cipherward.durable import write_file
from cipherward.errors import CipherwardError
from cipherward.evaluation import baselines
from cipherward.evaluation.accuracy.constants import Arm
from cipherward.evaluation.accuracy.federation import Simulator
from cipherward.evaluation.accuracy.statistics import corrected_interval
from cipherward.evaluation.accuracy.studies import Schedule
from cipherward.evaluation.accuracy.sums import Encryption
from cipherward.evaluation.baselines import SiteData, Weights
from cipherward.evaluation.heart_constants import steps, with_step
from cipherward.evaluation.output import console
from cipherward.site_agent.ledger.accounting import epsilon
from cipherward.site_agent.tasks.base import Records, Split, Task
from cipherward.site_agent.tasks.heart_disease import HeartDisease, to_records
from cipherward.site_agent.tasks.heart_disease.data import HOSPITALS, TEST_FRACTION, rows
from cipherward.site_agent.tasks.heart_disease.defaults import HEART_STUDY, StudyDefaults
from cipherward.site_agent.training import weights

FEDERATED = (Arm.FEDAVG, Arm.DP_FEDSGD)
SETTINGS = ("in_distribution", "external")


@dataclass(frozen=True, slots=True)
class Models:
    """What one repeat trained: a model of all hospitals together by arm, and one of each hospital's own."""

    together: dict[Arm, Weights]
    alone: dict[str, Weights]


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


def schedule(study: StudyDefaults, arm: Arm) -> Schedule:
    """The study's constants for one arm: as many steps in all, for dp-fedsgd each a round of its own; the noise on
    the metrics so that all rounds' together cost the same."""
    split = arm is Arm.DP_FEDSGD
    return Schedule(
        rounds=study.rounds * study.steps if split else study.rounds,
        steps=1 if split else study.steps,
        sampling_rate=study.sampling_rate,
        learning_rate=study.learning_rate,
        clip_norm=study.clip_norm,
        metrics_noise=study.metrics_noise_multiplier / math.sqrt(study.rounds),
    )


def federated(
    simulator: Simulator,
    task: Task,
    sites: Sequence[SiteData],
    start: Weights,
    study: StudyDefaults,
    arm: Arm,
    sigma: float,
) -> Weights:
    """One federated study of these hospitals."""
    return simulator.federated(
        task, sites, start, schedule(study, arm), strategy=arm.value, sigma=sigma,
        patients=study.divisor / study.sampling_rate,
    )  # fmt: skip


def train_all(simulator: Simulator, sites: Sequence[SiteData], study: StudyDefaults, sigma: float) -> Models:
    """Every arm, once. ``sigma``: of each step."""
    task = HeartDisease()
    start = weights.initial(task, 0)
    own = {name: with_step(study, step) for name, step in steps(study.epsilon).items()}
    together = {arm: federated(simulator, task, sites, start, own[arm], arm, sigma) for arm in FEDERATED}
    together[Arm.POOLED_DP] = baselines.pooled(
        task, sites, start, study.rounds, own[Arm.POOLED_DP].private(sigma)
    )
    together[Arm.POOLED] = baselines.pooled(task, sites, start, study.rounds, own[Arm.POOLED].plain())
    alone = {
        site.name: baselines.alone(task, site, start, study.rounds, own[site.name].private(sigma))
        for site in sites
    }
    return Models(together, alone)


def in_distribution(
    simulator: Simulator, sites: Sequence[SiteData], study: StudyDefaults, sigma: float
) -> NDArray[np.float64]:
    """AUC of each arm at each hospital, on its own held-out patients. Shape (arms, hospitals)."""
    models = train_all(simulator, sites, study, sigma)
    return np.array(
        [
            [_auc(models.together.get(arm, models.alone[site.name]), site.test) for site in sites]
            for arm in Arm
        ]
    )


def external(
    simulator: Simulator, sites: Sequence[SiteData], study: StudyDefaults, sigma: float
) -> NDArray[np.float64]:
    """AUC of each arm on all patients of each hospital, trained by the others. Shape (arms, hospitals)."""
    columns = []
    for away in sites:
        models = train_all(simulator, [site for site in sites if site is not away], study, sigma)
        everyone = baselines.concatenated([("train", away.train), ("test", away.test)])
        own = float(np.mean([_auc(model, everyone) for model in models.alone.values()]))
        columns.append(
            [_auc(models.together[arm], everyone) if arm in models.together else own for arm in Arm]
        )
    return np.array(columns).T


def _auc(model: Weights, records: Records) -> float:
    found = baselines.evaluate(HeartDisease(), model, records).auc
    return math.nan if found is None else found


def cross_validate(
    study: StudyDefaults, repeats: int, progress: Callable[[int], None] = lambda _: None
) -> dict[str, Any]:
    """The whole study, as written to JSON. Split seeds are 1..repeats. Raises UsageError for fewer than
    two."""
    sigma = study.noise_multiplier()
    tables: dict[str, list[NDArray[np.float64]]] = {setting: [] for setting in SETTINGS}
    with TemporaryDirectory() as folder:
        simulator = Simulator(Encryption.SIMULATED, Path(folder))
        for seed in range(1, repeats + 1):
            sites = hospitals(seed)
            for setting, measure in zip(SETTINGS, (in_distribution, external), strict=True):
                tables[setting].append(measure(simulator, sites, study, sigma))
            progress(seed)
    return {
        "repeats": repeats,
        "split_seeds": [1, repeats],
        "interval": "95 %, corrected resampled t (Nadeau and Bengio 2003), federated minus alone, paired",
        "study": asdict(study),
        "steps": {str(name): asdict(step) for name, step in steps(study.epsilon).items()},
        "noise_multiplier": sigma,
        "epsilon_spent": epsilon(study.events(sigma), study.delta),
        **{setting: _summary(np.array(found)) for setting, found in tables.items()},
    }


def _summary(auc: NDArray[np.float64]) -> dict[str, Any]:
    """By hospital. ``auc``: shape (repeats, arms, hospitals)."""
    arms, found = list(Arm), {}
    for index, name in enumerate([*HOSPITALS, "mean"]):
        column = auc.mean(axis=2) if name == "mean" else auc[:, :, index]
        gains = {arm: column[:, arms.index(arm)] - column[:, arms.index(Arm.ALONE)] for arm in FEDERATED}
        found[name] = {
            "auc": {arm.value: float(column[:, number].mean()) for number, arm in enumerate(arms)},
            "gain": {
                arm.value: asdict(corrected_interval(gain, TEST_FRACTION)) for arm, gain in gains.items()
            },
            "repeats_with_gain": {arm.value: float((gain > 0).mean()) for arm, gain in gains.items()},
        }
    return found


def losers(result: dict[str, Any]) -> list[str]:
    """Hospitals that do worse in a federation than alone, beyond the paired interval."""
    return [
        f"{name} with {arm.value}"
        for name, row in result["in_distribution"].items()
        for arm in FEDERATED
        if row["gain"][arm.value]["high"] < 0
    ]


def table(result: dict[str, Any], setting: str) -> Table:
    """One setting for people."""
    title = {
        "in_distribution": "AUC on each hospital's own held-out patients",
        "external": "AUC on all patients of a hospital that did not take part",
    }[setting]
    shown = Table(title=title, box=None, pad_edge=False)
    shown.add_column("hospital")
    for head in (*(arm.value for arm in Arm), *(f"{arm.value} less alone (95 %)" for arm in FEDERATED)):
        shown.add_column(head, justify="right")
    for name, row in result[setting].items():
        gains = [row["gain"][arm.value] for arm in FEDERATED]
        shown.add_row(
            name,
            *(f"{row['auc'][arm.value]:.3f}" for arm in Arm),
            *(f"{gain['mean']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})" for gain in gains),
        )
    return shown


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
        screen = console()
        screen.print(
            f"{repeats} repeats; epsilon {result['epsilon_spent']:.2f} at delta {HEART_STUDY.delta:g} for each patient "
            "over a whole study with metrics"
        )
        for setting in SETTINGS:
            screen.print(table(result, setting))
        screen.print(f"Interval: {result['interval']}.")
        worse = losers(result)
        screen.print(f"Worse than alone beyond the interval: {', '.join(worse) or 'nobody'}.")
        if json_file is not None:
            write_file(json_file, json.dumps(result, indent=2).encode() + b"\n")
    except CipherwardError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(error.exit_status) from error


if __name__ == "__main__":
    typer.run(main)
