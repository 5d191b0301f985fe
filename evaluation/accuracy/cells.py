"""The cells of the grid, and how one is computed."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict

from cipherward.evaluation import baselines
from cipherward.evaluation.accuracy.constants import Arm
from cipherward.evaluation.accuracy.data import Prepared
from cipherward.evaluation.accuracy.federation import Simulator
from cipherward.evaluation.accuracy.partition import Partition
from cipherward.evaluation.accuracy.studies import Schedule
from cipherward.evaluation.baselines import SiteData, Weights
from cipherward.site_agent.training import weights


class Entry(BaseModel):
    """Part of a results file, where an epsilon may be infinite."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")


class Cell(Entry):
    """One run of one arm. ``sites`` is 0 and ``partition`` None where all patients are in one place."""

    arm: Arm
    sites: int
    partition: Partition | None
    epsilon: float
    seed: int


class CellResult(Entry):
    """``auc``: on the common test split; of the arm ``alone`` the mean over sites, and ``by_site`` each site's.
    ``noise_multiplier``: sigma, 0 without privacy."""

    cell: Cell
    auc: float
    by_site: list[float]
    noise_multiplier: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Constants:
    """An arm's at one epsilon. ``spent``: what the accountant says the study costs, at DELTA."""

    schedule: Schedule
    noise_multiplier: float
    spent: float


Plan = dict[tuple[Arm, float], Constants]


def grid(
    arms: Sequence[Arm],
    sites: Sequence[int],
    partitions: Sequence[Partition],
    epsilons: Sequence[float],
    seeds: int,
) -> Iterator[Cell]:
    """Every cell there is, seed after seed, so that an unfinished grid is a grid of fewer seeds."""
    for seed in range(1, seeds + 1):
        for epsilon in epsilons:
            for arm in arms:
                if not arm.defined_at(epsilon):
                    continue
                if arm.central:
                    yield Cell(arm=arm, sites=0, partition=None, epsilon=epsilon, seed=seed)
                    continue
                for partition in partitions:
                    for count in sites:
                        yield Cell(arm=arm, sites=count, partition=partition, epsilon=epsilon, seed=seed)


class Laboratory:
    """Computes cells: the data loaded once, a consortium for each number of sites."""

    def __init__(self, data: Prepared, plan: Plan, simulator: Simulator, judged: str = "test") -> None:
        """``judged``: the part for AUC; constants are chosen on another than results are shown of."""
        self._data, self._plan, self._simulator = data, plan, simulator
        self._judged = data.parts[judged]

    def compute(self, cell: Cell) -> CellResult:
        """One cell, with fresh noise; its seed decides who is at which site."""
        began = time.perf_counter()
        constants = self._plan[cell.arm, cell.epsilon]
        models: list[Weights]
        if cell.partition is None:
            everyone = SiteData("all", self._data.parts["train"], self._judged)
            models = [self._train(everyone, constants, len(everyone.train.patients))]
        else:
            sites = self._data.sites(cell.sites, cell.partition, cell.seed)
            average = len(self._data.parts["train"].patients) / cell.sites
            if cell.arm is Arm.ALONE:
                models = [self._train(site, constants, average) for site in sites]
            else:
                model = self._simulator.federated(
                    self._data.task, sites, self._start, constants.schedule, strategy=cell.arm.value,
                    sigma=constants.noise_multiplier, patients=average,
                )  # fmt: skip
                models = [model]
        aucs = [baselines.evaluate(self._data.task, model, self._judged).auc for model in models]
        by_site = [math.nan if auc is None else auc for auc in aucs]
        return CellResult(
            cell=cell,
            auc=float(np.mean(by_site)),
            by_site=by_site,
            noise_multiplier=constants.noise_multiplier,
            seconds=time.perf_counter() - began,
        )

    @property
    def _start(self) -> Weights:
        return weights.initial(self._data.task, 0)

    def _train(self, site: SiteData, constants: Constants, patients: float) -> Weights:
        schedule = constants.schedule
        sgd = schedule.local(constants.noise_multiplier, patients)
        return baselines.alone(self._data.task, site, self._start, schedule.rounds, sgd)
