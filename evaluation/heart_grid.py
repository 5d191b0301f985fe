"""How the heart-disease study's constants were chosen: every combination that was tried, and its AUC.

    python -m cipherward.evaluation.heart_grid schedules --repeats 40
    python -m cipherward.evaluation.heart_grid constants --repeats 40 --epsilon 3

The splits (seeds from 1001) are not those of ``heart_cv``, but the patients are the same, so its figures are a little
too good.

``schedules``: federated averaging with privacy, mean AUC over hospitals. ``constants``: learning rate and clipping
norm on the schedule chosen, for every arm. A hospital alone takes those that are best for it, the most that it could
hope for. A federation takes those with which the hospital that gains least over that gains most, so that nobody is
worse off; of those within ALIKE of it the smallest product of both, whose noise moves the model least, as in the grid
of ``accuracy.tuning``. pooled, without privacy, takes the best mean over hospitals.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from cipherward.evaluation import baselines
from cipherward.evaluation.accuracy.constants import Arm
from cipherward.evaluation.accuracy.federation import Simulator
from cipherward.evaluation.accuracy.sums import Encryption
from cipherward.evaluation.accuracy.tuning import ALIKE
from cipherward.evaluation.heart_constants import Step, with_step
from cipherward.evaluation.heart_cv import FEDERATED, federated, hospitals
from cipherward.site_agent.tasks.base import Task
from cipherward.site_agent.tasks.heart_disease import HeartDisease
from cipherward.site_agent.tasks.heart_disease.data import FEATURES, HOSPITALS
from cipherward.site_agent.tasks.heart_disease.defaults import HEART_STUDY, StudyDefaults
from cipherward.site_agent.training import weights

if TYPE_CHECKING:
    from torch import nn

_FIRST_SEED = 1001
# (sampling rate, steps a round, rounds)
_SCHEDULES = ((0.25, 10, 5), (0.25, 10, 10), (1.0, 5, 5), (1.0, 2, 10))
_LEARNING_RATES = (0.5, 1.0, 2.0)
_CLIP_NORMS = (0.5, 1.0)
STEPS = tuple(Step(*pair) for pair in product((0.25, 0.5, 1.0, 2.0, 4.0), (0.5, 1.0, 2.0)))
"""Tried for every arm."""

Table = dict[Step, NDArray[np.float64]]
"""AUC at each hospital, (hospitals,), mean over repeats."""

app = typer.Typer(no_args_is_help=True)


class HiddenLayer(HeartDisease):
    """The same problem with a hidden layer of 8: 193 parameters."""

    def model(self) -> nn.Module:
        """From torch's usual random start."""
        from torch import nn

        return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, 1))


def combinations() -> Iterator[tuple[Task, StudyDefaults]]:
    """The schedules that were tried: logistic regression on all, the hidden layer on the first."""
    for (rate, steps, rounds), learning_rate, clip in product(_SCHEDULES, _LEARNING_RATES, _CLIP_NORMS):
        study = replace(
            HEART_STUDY,
            sampling_rate=rate,
            steps=steps,
            rounds=rounds,
            divisor=HEART_STUDY.divisor / HEART_STUDY.sampling_rate * rate,
            learning_rate=learning_rate,
            clip_norm=clip,
        )
        yield HeartDisease(), study
        if (rate, steps, rounds) == _SCHEDULES[0]:
            yield HiddenLayer(), study


def auc(
    simulator: Simulator, task: Task, study: StudyDefaults, arm: Arm, repeats: int
) -> NDArray[np.float64]:
    """Of an arm at each hospital, mean over repeats, shape (hospitals,)."""
    sigma, table = study.noise_multiplier(), []
    for seed in range(_FIRST_SEED, _FIRST_SEED + repeats):
        sites, start = hospitals(seed), weights.initial(task, seed)
        if arm is Arm.ALONE:
            models = [
                baselines.alone(task, site, start, study.rounds, study.private(sigma)) for site in sites
            ]
        elif arm is Arm.POOLED:
            models = [baselines.pooled(task, sites, start, study.rounds, study.plain())] * len(sites)
        else:
            models = [federated(simulator, task, sites, start, study, arm, sigma)] * len(sites)
        table.append(
            [
                baselines.evaluate(task, model, site.test).auc
                for model, site in zip(models, sites, strict=True)
            ]
        )
    mean: NDArray[np.float64] = np.array(table, dtype=np.float64).mean(axis=0)
    return mean


def best_alone(table: Table) -> list[Step]:
    """For each hospital the step that is best for it."""
    tried = list(table)
    return [tried[place] for place in np.argmax(list(table.values()), axis=0)]


def best_together(table: Table, alone: Table) -> Step:
    """The step with which the hospital that gains least over its best alone gains most, but for ALIKE."""
    top = np.max(list(alone.values()), axis=0)
    least = {step: float((found - top).min()) for step, found in table.items()}
    alike = [step for step, gain in least.items() if gain >= max(least.values()) - ALIKE]
    return min(alike, key=lambda step: (step.learning_rate * step.clip_norm, step.clip_norm))


def best_mean(table: Table) -> Step:
    """The step with the best mean over hospitals."""
    return max(table, key=lambda step: float(table[step].mean()))


@contextmanager
def _simulator() -> Iterator[Simulator]:
    with TemporaryDirectory() as folder:
        yield Simulator(Encryption.SIMULATED, Path(folder))


@app.command()
def schedules(repeats: Annotated[int, typer.Option(min=1, help="Splits a combination.")] = 40) -> None:
    """Print the schedules tried. Example: heart_grid schedules --repeats 40"""
    typer.echo("model               q steps rounds   lr    C   mean   " + "  ".join(HOSPITALS))
    with _simulator() as simulator:
        for task, study in combinations():
            found = auc(simulator, task, study, Arm.FEDAVG, repeats)
            typer.echo(
                f"{type(task).__name__:15} {study.sampling_rate:5} {study.steps:5} {study.rounds:6}"
                f" {study.learning_rate:4} {study.clip_norm:4}  {found.mean():.3f}   "
                + "  ".join(f"{value:.3f}" for value in found)
            )


@app.command()
def constants(
    repeats: Annotated[int, typer.Option(min=1, help="Splits a combination.")] = 40,
    epsilon: Annotated[float, typer.Option(min=0.01)] = HEART_STUDY.epsilon,
) -> None:
    """Print learning rates and clipping norms tried, and the choice. Example: heart_grid constants --repeats 40"""
    study = replace(HEART_STUDY, epsilon=epsilon)
    typer.echo("arm          lr    C    mean   " + "  ".join(HOSPITALS))
    tables: dict[Arm, Table] = {}
    with _simulator() as simulator:
        for arm in (Arm.ALONE, *FEDERATED, Arm.POOLED):
            tables[arm] = {}
            for step in STEPS:
                # Without privacy nothing is clipped.
                if arm is Arm.POOLED and step.clip_norm != STEPS[0].clip_norm:
                    continue
                found = auc(simulator, HeartDisease(), with_step(study, step), arm, repeats)
                tables[arm][step] = found
                typer.echo(
                    f"{arm:10} {step.learning_rate:4g} {step.clip_norm:4g}  {found.mean():.4f}   "
                    + "  ".join(f"{value:.4f}" for value in found)
                )
    for name, step in zip(HOSPITALS, best_alone(tables[Arm.ALONE]), strict=True):
        typer.echo(f"{name} alone: {step.learning_rate:g}, {step.clip_norm:g}")
    for arm in FEDERATED:
        step = best_together(tables[arm], tables[Arm.ALONE])
        typer.echo(f"{arm}: {step.learning_rate:g}, {step.clip_norm:g}")
    typer.echo(f"{Arm.POOLED}: {best_mean(tables[Arm.POOLED]).learning_rate:g}")


if __name__ == "__main__":
    app()
