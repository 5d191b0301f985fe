"""One cell of the grid through real processes: a coordinator and agents with keys, policies and ledgers, beside the
simulation of the very same study. What the two may differ by is the noise's randomness."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from cipherward.errors import UnavailableError, UsageError
from cipherward.evaluation import baselines
from cipherward.evaluation.accuracy.cells import Cell, Constants, Entry, Laboratory
from cipherward.evaluation.accuracy.data import Prepared
from cipherward.evaluation.accuracy.federation import Simulator
from cipherward.evaluation.accuracy.partition import Partition
from cipherward.evaluation.accuracy.statistics import Interval, paired_interval
from cipherward.evaluation.accuracy.studies import DELTA, study_file
from cipherward.evaluation.accuracy.sums import Encryption
from cipherward.evaluation.demo.consortium import DemoConsortium, DemoSite
from cipherward.evaluation.demo.processes import Processes
from cipherward.evaluation.demo.study import RunningStudy
from cipherward.site_agent.training.client import Trainer

RESULTS = "real-cell.json"
TRIED = 100
_SECONDS_A_ROUND = 120.0
_SUITE = "quorum"


class RealCell(Entry):
    """``real`` and ``simulated``: AUCs, one a seed; every seed is a partition of the patients that both have."""

    cells: list[Cell]
    real: list[float]
    simulated: list[float]

    @property
    def difference(self) -> Interval:
        """Real less simulated; UsageError for fewer than two runs."""
        return paired_interval(self.real, self.simulated)


def seeds_taken(data: Prepared, sites: int, partition: Partition, runs: int) -> list[int]:
    """The first so many seeds whose deal every hospital takes part in: its policy wants delta below 1 / (10 x its
    patients). UsageError if ``TRIED`` seeds have too few."""
    most = 1 / (10 * DELTA)
    dealt = (
        (seed, max(len(site.train.patients) for site in data.sites(sites, partition, seed)))
        for seed in range(1, TRIED + 1)
    )
    found = list(islice((seed for seed, largest in dealt if largest < most), runs))
    if len(found) < runs:
        raise UsageError(
            f"only {len(found)} of {TRIED} deals leave every hospital with fewer than {most:g} patients",
            why=f"with more its own policy refuses delta = {DELTA:g}",
            fix="Take more sites",
        )
    return found


@dataclass(frozen=True, slots=True)
class Bench:
    """Where real cells are run."""

    data: Prepared
    constants: Constants
    say: Callable[[str], None]

    def compare(self, cells: list[Cell]) -> RealCell:
        """Each of these cells of one arm and epsilon, real and simulated."""
        real, simulated = [], []
        with TemporaryDirectory(prefix="cipherward-accuracy-") as keys:
            simulator = Simulator(Encryption.SIMULATED, Path(keys))
            for cell in cells:
                laboratory = Laboratory(self.data, {(cell.arm, cell.epsilon): self.constants}, simulator)
                simulated.append(laboratory.compute(cell).auc)
                with TemporaryDirectory(prefix="cipherward-real-cell-") as folder:
                    real.append(self.run(cell, Path(folder)))
                self.say(f"seed {cell.seed}: real {real[-1]:.4f}, simulated {simulated[-1]:.4f}")
        return RealCell(cells=cells, real=real, simulated=simulated)

    def run(self, cell: Cell, folder: Path) -> float:
        """AUC, on the common test part, of the model that a site exports when the study has ended.

        Raises UnavailableError if a process fails.
        """
        if cell.partition is None:
            raise UnavailableError("patients in one place make no federation")
        schedule, task = self.constants.schedule, self.data.task
        sources = self.data.sources(cell.sites, cell.partition, cell.seed)
        consortium = DemoConsortium(folder)
        for name, source in sources.items():
            site = DemoSite(name, source, cell.epsilon, DELTA)
            consortium.add_site(site, task.name, _SUITE, strategy=cell.arm.value)
        socket = folder / "trainer" / "socket"
        trainer = Trainer(socket, log=folder / "trainer.log")
        with Processes(folder / "logs") as processes:
            try:
                trainer.start()
                study = study_file(
                    schedule, strategy=cell.arm.value, task=task.name, sites=cell.sites,
                    patients=len(self.data.parts["train"].patients) / cell.sites,
                    sigma=self.constants.noise_multiplier,
                )  # fmt: skip
                consortium.sign_study(study, 0, trainer)
                running = RunningStudy(consortium, processes, list(sources), "cipherward.cli.app")
                running.start(socket)
                running.watch(lambda _: None, _SECONDS_A_ROUND * schedule.rounds, every=1.0)
                running.wait_for_sites(_SECONDS_A_ROUND)
            finally:
                trainer.close()
            model = folder / "model.f32"
            site_folder = consortium.site_folder(next(iter(sources)))
            running.cipherward(
                "site", "export-model", study.study.name, "--dir", str(site_folder), "--out", str(model)
            )
        found = baselines.evaluate(
            task, np.fromfile(model, dtype="<f4").astype(np.float32), self.data.parts["test"]
        )
        if found.auc is None:
            raise UnavailableError("the test part has one label only: there is no AUC")
        return found.auc
