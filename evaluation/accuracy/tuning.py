"""How the grid's constants were chosen: every combination that was tried, and its AUC on the validation split.

    python -m cipherward.evaluation.accuracy.tuning FEATURES.npz

Eight IID sites, fresh noise and another partition for each seed; the seeds are not those of the grid. dp-fedsgd and
pooled-dp, which differ by the noise alone, share the constants with the best mean of both.
"""

from __future__ import annotations

from collections.abc import Iterator
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

_SITES, _FIRST_SEED = 8, 1001


def combinations(arm: Arm, epsilon: float) -> Iterator[Constants]:
    """All that was tried for an arm at one epsilon; without privacy nothing is clipped."""
    fixed = shape(arm, epsilon)
    sigma = fixed.noise_multiplier(epsilon)
    for rate, clip_norm in product(RATES, CLIP_NORMS if sigma else CLIP_NORMS[-1:]):
        yield Constants(replace(fixed, learning_rate=rate, clip_norm=clip_norm), sigma, epsilon)


def auc(laboratory: Laboratory, arm: Arm, epsilon: float, seeds: int) -> float:
    """Mean over seeds."""
    partition = None if arm.central else Partition.IID
    sites = 0 if arm.central else _SITES
    seeded = range(_FIRST_SEED, _FIRST_SEED + seeds)
    cells = [Cell(arm=arm, sites=sites, partition=partition, epsilon=epsilon, seed=seed) for seed in seeded]
    return float(np.mean([laboratory.compute(cell).auc for cell in cells]))


def main(
    features: Annotated[Path, typer.Argument(help="As for cipherward accuracy run.")],
    arm: Annotated[list[Arm] | None, typer.Option(help="Repeat for several.  [default: all]")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs a combination.")] = 2,
) -> None:
    """Print what was tried. Example: tuning features.npz --seeds 2"""
    data = load(features)
    typer.echo("arm         epsilon   rate   clip  AUC on val")
    with TemporaryDirectory() as folder:
        simulator = Simulator(Encryption.SIMULATED, Path(folder))
        for one, epsilon in product(arm or Arm, EPSILONS):
            if not one.defined_at(epsilon):
                continue
            for constants in combinations(one, epsilon):
                laboratory = Laboratory(data, {(one, epsilon): constants}, simulator, "val")
                found, chosen = auc(laboratory, one, epsilon, seeds), constants.schedule
                typer.echo(
                    f"{one:10} {epsilon:8g} {chosen.learning_rate:6g} {chosen.clip_norm:6g}  {found:.4f}"
                )


if __name__ == "__main__":
    typer.run(main)
