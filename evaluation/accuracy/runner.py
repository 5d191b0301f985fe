"""Runs the grid: what is not in the folder's results yet, in processes, with progress; then table and plots."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from cipherward.durable import explained, write_file
from cipherward.errors import UsageError
from cipherward.evaluation.accuracy import report
from cipherward.evaluation.accuracy.cells import Cell, CellResult, Constants, Laboratory, Plan, grid
from cipherward.evaluation.accuracy.constants import Arm, schedule
from cipherward.evaluation.accuracy.data import features_of, load
from cipherward.evaluation.accuracy.federation import Simulator
from cipherward.evaluation.accuracy.journal import Journal, Results, Settings, constants_of
from cipherward.evaluation.accuracy.partition import Partition
from cipherward.evaluation.accuracy.real_cell import RESULTS, Bench, RealCell, seeds_taken
from cipherward.evaluation.accuracy.studies import DELTA
from cipherward.evaluation.accuracy.sums import Encryption
from cipherward.evaluation.output import console as new_console
from cipherward.site_agent.ledger.accounting import epsilon as epsilon_of

_PR_SET_PDEATHSIG = 1
_AHEAD = 2
"""Cells a process has waiting."""


@dataclass(frozen=True, slots=True)
class Options:
    """Of ``cipherward accuracy run``."""

    data: Path
    sites: Sequence[int]
    epsilons: Sequence[float]
    partitions: Sequence[Partition]
    arms: Sequence[Arm]
    seeds: int
    encryption: Encryption
    jobs: int
    out: Path


def make_plan(arms: Sequence[Arm], epsilons: Sequence[float]) -> Plan:
    """Constants, noise and what the accountant says of them, for each arm at each epsilon that it is defined at."""
    plan: Plan = {}
    for arm in arms:
        for target in epsilons:
            if arm.defined_at(target):
                chosen = schedule(arm, target)
                sigma = chosen.noise_multiplier(target)
                spent = epsilon_of(chosen.events(sigma), DELTA) if sigma else math.inf
                plan[arm, target] = Constants(chosen, sigma, spent)
    return plan


def run_grid(options: Options) -> Results:
    """The grid, and what is made of it in ``options.out``. Ctrl-C ends it; what is finished stays."""
    console = new_console()
    path = features_of(options.data, options.out, lambda line: console.print(f"- {line}"))
    data = load(path)
    console.print("- calibrating the noise")
    plan = make_plan(options.arms, options.epsilons)
    if not plan:
        raise UsageError(
            "there is nothing to compute",
            why="none of the arms is defined at these epsilons",
            fix="dp-fedsgd and pooled-dp need a finite epsilon, pooled needs inf",
        )
    settings = Settings(
        data=data.digest, encryption=options.encryption, delta=DELTA, constants=constants_of(plan)
    )
    journal = Journal(options.out, settings)
    wanted = list(
        grid(options.arms, options.sites, options.partitions, sorted(options.epsilons), options.seeds)
    )
    missing = [cell for cell in wanted if not journal.has(cell)]
    if len(missing) < len(wanted):
        console.print(f"- {len(wanted) - len(missing)} of {len(wanted)} cells are in {options.out} already")
    with _Shown(console, len(missing)) as shown, ExitStack() as stack:
        if options.jobs == 1:
            laboratory = Laboratory(data, plan, Simulator(options.encryption, _keys(stack)))
            results: Iterator[CellResult] = (laboratory.compute(cell) for cell in missing)
        else:
            results = _in_processes(stack, options, path, plan, missing)
        for result in results:
            journal.add(result)
            shown.add(result)
    _write_report(options.out, journal.results)
    report.show(console, journal.results)
    console.print(f"results, table and plots: {options.out}")
    return journal.results


def run_real(options: Options, runs: int) -> RealCell:
    """The first of the options' cells of dp-fedsgd, through real processes and simulated, for so many seeds."""
    console = new_console()
    data = load(features_of(options.data, options.out, lambda line: console.print(f"- {line}")))
    target = next((one for one in options.epsilons if Arm.DP_FEDSGD.defined_at(one)), None)
    if target is None:
        raise UsageError("dp-fedsgd has no cell without privacy", fix="Give a finite --epsilon")
    constants = make_plan([Arm.DP_FEDSGD], [target])[Arm.DP_FEDSGD, target]
    sites, partition = options.sites[0], options.partitions[0]
    cells = [
        Cell(arm=Arm.DP_FEDSGD, sites=sites, partition=partition, epsilon=target, seed=seed)
        for seed in seeds_taken(data, sites, partition, runs)
    ]
    console.print(f"- through real processes: {report.describe(cells[0]).rpartition(',')[0]}")
    found = Bench(data, constants, lambda line: console.print(f"  {line}")).compare(cells)
    if runs > 1:
        gap = found.difference
        console.print(f"real less simulated: {gap.mean:+.4f} (95 % {gap.low:+.4f} to {gap.high:+.4f})")
    with explained("create", options.out):
        options.out.mkdir(parents=True, exist_ok=True)
    write_file(options.out / RESULTS, found.model_dump_json(indent=1).encode() + b"\n")
    return found


def _write_report(folder: Path, results: Results) -> None:
    write_file(folder / "table.md", report.markdown(results).encode())
    for name, picture in report.plots(results):
        write_file(folder / name, picture)


class _Shown:
    """A bar on a terminal, a line a cell elsewhere."""

    def __init__(self, console: Console, total: int) -> None:
        self._console, self._total, self._count = console, total, 0
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> _Shown:
        if self._console.is_terminal and self._total:
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                TimeElapsedColumn(), TimeRemainingColumn(), console=self._console, transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task("cells", total=self._total)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def add(self, result: CellResult) -> None:
        """One more is done."""
        self._count += 1
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=1, description=report.describe(result.cell))
            return
        self._console.print(
            f"  {self._count} of {self._total}: {report.describe(result.cell)}: AUC {result.auc:.3f}, "
            f"{result.seconds:.1f} s"
        )


_laboratory: Laboratory | None = None
"""A worker's own."""


def _keys(stack: ExitStack) -> Path:
    """A folder for the simulated consortia, which goes with the run."""
    return Path(stack.enter_context(TemporaryDirectory(prefix="cipherward-accuracy-")))


def _begin(parent: int, path: Path, plan: Plan, encryption: Encryption, keys: Path) -> None:
    """In a new worker: end with the parent, leave Ctrl-C to it, load the data."""
    global _laboratory
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _laboratory = Laboratory(load(path), plan, Simulator(encryption, keys))


def _compute(cell: Cell) -> CellResult:
    if _laboratory is None:
        raise UsageError("the worker has no data")
    return _laboratory.compute(cell)


def _in_processes(
    stack: ExitStack, options: Options, path: Path, plan: Plan, cells: Sequence[Cell]
) -> Iterator[CellResult]:
    """Results as they come."""
    if not cells:
        return
    pool = ProcessPoolExecutor(
        min(options.jobs, len(cells)),
        get_context("spawn"),
        _begin,
        (os.getpid(), path, plan, options.encryption, _keys(stack)),
    )
    stack.callback(_stop, pool)
    left = iter(cells)
    running: set[Future[CellResult]] = {
        pool.submit(_compute, cell) for cell in islice(left, _AHEAD * options.jobs)
    }
    while running:
        done, running = wait(running, return_when=FIRST_COMPLETED)
        running |= {pool.submit(_compute, cell) for cell in islice(left, len(done))}
        for future in done:
            yield future.result()


def _stop(pool: ProcessPoolExecutor) -> None:
    """Without waiting for the cells in progress, if there are any."""
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    deadline = time.monotonic() + 0.5
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.terminate()
