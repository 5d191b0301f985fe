"""How the heart-disease study's constants were chosen: every combination that was tried, and its AUC.

    python -m cipherward.evaluation.heart_grid --repeats 40

Each row is the model of federated averaging with privacy, mean AUC over hospitals and repeats. The splits (seeds from
1001) are not those of ``heart_cv``, but the patients are the same, so its figures are a little too good.
"""

from __future__ import annotations

from collections.abc import Iterator
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
from cipherward.evaluation.heart_cv import federated, hospitals
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


class HiddenLayer(HeartDisease):
    """The same problem with a hidden layer of 8: 193 parameters."""

    def model(self) -> nn.Module:
        """From torch's usual random start."""
        from torch import nn

        return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, 1))


def combinations() -> Iterator[tuple[Task, StudyDefaults]]:
    """All that was tried: logistic regression on every schedule, the hidden layer on the first."""
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


def auc(task: Task, study: StudyDefaults, repeats: int) -> NDArray[np.float64]:
    """Of the federated model at each hospital, mean over repeats, shape (hospitals,)."""
    sigma, table = study.noise_multiplier(), []
    with TemporaryDirectory() as folder:
        simulator = Simulator(Encryption.SIMULATED, Path(folder))
        for seed in range(_FIRST_SEED, _FIRST_SEED + repeats):
            sites, start = hospitals(seed), weights.initial(task, seed)
            model = federated(simulator, task, sites, start, study, Arm.FEDAVG, sigma)
            table.append([baselines.evaluate(task, model, site.test).auc for site in sites])
    mean: NDArray[np.float64] = np.array(table, dtype=np.float64).mean(axis=0)
    return mean


def main(repeats: Annotated[int, typer.Option(min=1, help="Splits a combination.")] = 40) -> None:
    """Print the grid. Example: heart_grid --repeats 40"""
    typer.echo("model               q steps rounds   lr    C   mean   " + "  ".join(HOSPITALS))
    for task, study in combinations():
        found = auc(task, study, repeats)
        typer.echo(
            f"{type(task).__name__:15} {study.sampling_rate:5} {study.steps:5} {study.rounds:6}"
            f" {study.learning_rate:4} {study.clip_norm:4}  {found.mean():.3f}   "
            + "  ".join(f"{value:.3f}" for value in found)
        )


if __name__ == "__main__":
    typer.run(main)
