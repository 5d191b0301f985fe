"""How the grid's constants were chosen: every combination that was tried, its AUC on the validation split, and the
choice.

    python -m cipherward.evaluation.accuracy.tuning FEATURES.npz

Eight IID sites, fresh noise and another partition for each seed; the seeds are not those of the grid. Of those within
ALIKE of the best mean AUC, the combination with the smallest product of learning rate and clipping norm is taken, whose
noise moves the model least. dp-fedsgd and pooled-dp, which differ by the noise alone, share the constants: the mean of
both counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import typer

from cipherward.evaluation.accuracy.cells import Cell, Constants, Laboratory
from cipherward.evaluation.accuracy.constants import CLIP_NORMS, EPSILONS, RATES, Arm, shape
from cipherward.evaluation.accuracy.data import load
from cipherward.evaluation.accuracy.federation import Simulator
from cipherward.evaluation.accuracy.partition import Partition
from cipherward.evaluation.accuracy.sums import Encryption

ALIKE = 0.003
"""Of AUC: what a few runs do not tell apart."""
_SITES, _FIRST_SEED = 8, 1001
_TOGETHER = ((Arm.ALONE,), (Arm.FEDAVG,), (Arm.DP_FEDSGD, Arm.POOLED_DP), (Arm.POOLED,))


def combinations(arm: Arm, epsilon: float) -> Iterator[Constants]:
    """All that was tried for an arm at one epsilon; without privacy nothing is clipped."""
    fixed = shape(arm, epsilon)
    sigma = fixed.noise_multiplier(epsilon)
    for rate, clip_norm in product(RATES, CLIP_NORMS if sigma else CLIP_NORMS[-1:]):
        yield Constants(replace(fixed, learning_rate=rate, clip_norm=clip_norm), sigma, epsilon)


def best(tried: Sequence[tuple[Constants, float]]) -> Constants:
    """The rule above, for what was tried and its mean AUC. Raises ValueError for nothing."""
    top = max(found for _, found in tried)
    alike = [constants.schedule for constants, found in tried if found >= top - ALIKE]
    chosen = min(alike, key=lambda one: (one.learning_rate * one.clip_norm, one.clip_norm))
    return next(constants for constants, _ in tried if constants.schedule == chosen)


def auc(laboratory: Laboratory, arm: Arm, epsilon: float, sites: int, seeds: int) -> float:
    """Mean over seeds."""
    partition = None if arm.central else Partition.IID
    seeded = range(_FIRST_SEED, _FIRST_SEED + seeds)
    cells = [
        Cell(
            arm=arm, sites=0 if arm.central else sites, partition=partition, epsilon=epsilon, seed=seed
        )
        for seed in seeded
    ]  # fmt: skip
    return float(np.mean([laboratory.compute(cell).auc for cell in cells]))


def main(
    features: Annotated[Path, typer.Argument(help="As for cipherward accuracy run.")],
    arm: Annotated[list[Arm] | None, typer.Option(help="Repeat for several.  [default: all]")] = None,
    sites: Annotated[int, typer.Option(min=3, max=32, help="IID.")] = _SITES,
    seeds: Annotated[int, typer.Option(min=1, help="Runs a combination.")] = 4,
) -> None:
    """Print what was tried and what is chosen. Example: tuning features.npz --seeds 4"""
    data = load(features)
    typer.echo("arm                   epsilon   rate   clip  AUC on val")
    with TemporaryDirectory() as folder:
        simulator = Simulator(Encryption.SIMULATED, Path(folder))
        for group, epsilon in product(_TOGETHER, EPSILONS):
            arms = [one for one in group if one in (arm or Arm) and one.defined_at(epsilon)]
            if not arms:
                continue
            name, tried = "+".join(arms), []
            for constants in combinations(arms[0], epsilon):
                found = [
                    auc(
                        Laboratory(data, {(one, epsilon): constants}, simulator, "val"),
                        one, epsilon, sites, seeds,
                    )
                    for one in arms
                ]  # fmt: skip
                tried.append((constants, float(np.mean(found))))
                shown = constants.schedule
                typer.echo(
                    f"{name:20} {epsilon:8g} {shown.learning_rate:6g} {shown.clip_norm:6g}  {tried[-1][1]:.4f}"
                )
            chosen = best(tried).schedule
            typer.echo(f"{name:20} {epsilon:8g} {chosen.learning_rate:6g} {chosen.clip_norm:6g}  chosen")


if __name__ == "__main__":
    typer.run(main)
