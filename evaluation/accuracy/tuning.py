"""How the grid's constants were chosen: every combination that was tried, its AUC on the validation split, and the
choice.

    python -m cipherward.evaluation.accuracy.tuning FEATURES.npz

Eight IID sites, fresh noise and another partition for each seed; the seeds are not those of the grid. Each
combination is run with a few seeds, and those within NEAR of the best with more. Of those within ALIKE of the best mean
AUC over all their runs, the combination with the smallest product of learning rate and clipping norm is taken, whose
noise moves the model least. dp-fedsgd and pooled-dp, which differ by the noise alone, share the constants: the mean of
both counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import typer

from cipherward.evaluation.accuracy.cells import Cell, Constants, Laboratory
from cipherward.evaluation.accuracy.constants import CLIP_NORMS, EPSILONS, RATES, Arm, shape
from cipherward.evaluation.accuracy.data import Prepared, load
from cipherward.evaluation.accuracy.federation import Simulator
from cipherward.evaluation.accuracy.partition import Partition
from cipherward.evaluation.accuracy.sums import Encryption

NEAR, ALIKE = 0.01, 0.003
"""Of AUC: what two runs and what several do not tell apart."""
_FIRST_SEED = 1001
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


@dataclass(frozen=True, slots=True)
class Bench:
    """Where combinations are run."""

    data: Prepared
    simulator: Simulator
    sites: int

    def auc(self, arms: Sequence[Arm], epsilon: float, constants: Constants, seeds: range) -> list[float]:
        """On the validation split, of each arm with each seed."""
        found = []
        for arm in arms:
            laboratory = Laboratory(self.data, {(arm, epsilon): constants}, self.simulator, "val")
            partition = None if arm.central else Partition.IID
            sites = 0 if arm.central else self.sites
            cells = [
                Cell(arm=arm, sites=sites, partition=partition, epsilon=epsilon, seed=_FIRST_SEED + seed)
                for seed in seeds
            ]
            found += [laboratory.compute(cell).auc for cell in cells]
        return found


def choose(bench: Bench, arms: Sequence[Arm], epsilon: float, seeds: int, more: int) -> None:
    """Print what was tried for arms that share constants, and the choice."""
    name = "+".join(arms)
    runs = [
        (constants, bench.auc(arms, epsilon, constants, range(seeds)))
        for constants in combinations(arms[0], epsilon)
    ]
    for constants, found in runs:
        _say(name, epsilon, constants, f"{np.mean(found):.4f}")
    top = max(float(np.mean(found)) for _, found in runs)
    near = [(constants, found) for constants, found in runs if np.mean(found) >= top - NEAR]
    if len(near) > 1:
        for constants, found in near:
            found += bench.auc(arms, epsilon, constants, range(seeds, seeds + more))
            _say(name, epsilon, constants, f"{np.mean(found):.4f} of {seeds + more}")
    chosen = best([(constants, float(np.mean(found))) for constants, found in near])
    _say(name, epsilon, chosen, "chosen")


def _say(name: str, epsilon: float, constants: Constants, what: str) -> None:
    shown = constants.schedule
    typer.echo(f"{name:20} {epsilon:8g} {shown.learning_rate:6g} {shown.clip_norm:6g}  {what}")


def main(
    features: Annotated[Path, typer.Argument(help="As for cipherward accuracy run.")],
    arm: Annotated[list[Arm] | None, typer.Option(help="Repeat for several.  [default: all]")] = None,
    sites: Annotated[int, typer.Option(min=3, max=32, help="IID.")] = 8,
    seeds: Annotated[int, typer.Option(min=1, help="Runs a combination.")] = 2,
    more: Annotated[int, typer.Option(min=1, help="More runs of those near the best.")] = 4,
) -> None:
    """Print what was tried and what is chosen. Example: tuning features.npz --seeds 2"""
    data = load(features)
    typer.echo("arm                   epsilon   rate   clip  AUC on val")
    with TemporaryDirectory() as folder:
        bench = Bench(data, Simulator(Encryption.SIMULATED, Path(folder)), sites)
        for group, epsilon in product(_TOGETHER, EPSILONS):
            arms = [one for one in group if one in (arm or Arm) and one.defined_at(epsilon)]
            if arms:
                choose(bench, arms, epsilon, seeds, more)


if __name__ == "__main__":
    typer.run(main)
