"""Runs rows, several at a time, shows how far they are, and writes both reports."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from cipherward.durable import explained, write_file
from cipherward.errors import UsageError
from cipherward.evaluation.output import console as new_console
from cipherward.evaluation.threats import registry
from cipherward.evaluation.threats.outcome import Outcome, Verdict, write_json
from cipherward.evaluation.threats.report import write_report
from cipherward.evaluation.threats.row import Row
from cipherward.evaluation.threats.worker import Running

_MARK = ".cipherward-threats"
_POLL_SECONDS = 0.2
_STYLE = {Verdict.PASSED: "green", Verdict.FAILED: "bold red", Verdict.ERROR: "bold yellow"}


@dataclass(frozen=True, slots=True)
class Options:
    """Of ``cipherward threats run``."""

    rows: Sequence[str]
    fast: bool
    out: Path
    jobs: int | None = None
    keep: bool = False


def prepare_folder(path: Path) -> None:
    """An empty folder; an earlier run's is replaced, anything else is left alone. Raises UsageError,
    EnvironmentProblem."""
    with explained("prepare", path):
        if path.exists() and any(path.iterdir()):
            if not (path / _MARK).exists():
                raise UsageError(
                    f"{path} is not empty",
                    why="it does not hold an earlier report of threats",
                    fix="Choose another folder with --out",
                )
            shutil.rmtree(path)
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_file(path / _MARK, b"made by cipherward threats run; replaced by the next one\n")


class _Display:
    """Running rows on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console, total: int) -> None:
        self._console, self._total, self._done = console, total, 0
        self._live = Live(console=console, auto_refresh=False, transient=True)
        if console.is_terminal:
            self._live.start()

    def show(self, running: Sequence[Running]) -> None:
        if not self._console.is_terminal:
            return
        table = Table(box=None, show_header=False, pad_edge=False)
        for one in running:
            table.add_row(f"  {one.row.id}", f"{one.seconds:5.0f} s", one.said or "starting", style="dim")
        self._live.update(table, refresh=True)

    def done(self, outcome: Outcome) -> None:
        self._done += 1
        verdict = outcome.verdict
        self._console.print(
            f"[{self._done}/{self._total}] {outcome.row.id} {verdict.value:<6} {outcome.seconds:6.1f} s  "
            f"{outcome.row.title}",
            style=None if verdict is Verdict.PASSED else _STYLE[verdict],
            markup=False,
        )
        said = outcome.reason if verdict is Verdict.ERROR else outcome.result.plain if outcome.result else ""
        self._console.print(f"        {said}", markup=False)

    def close(self) -> None:
        self._live.stop()


def _run_all(rows: Sequence[Row], options: Options, display: _Display) -> list[Outcome]:
    cores = len(os.sched_getaffinity(0))
    # Rows wait for deadlines and for their processes half of the time.
    jobs = options.jobs or cores + 1
    # The longest first: nothing is left to wait for at the end.
    waiting = sorted(rows, key=lambda row: row.seconds(options.fast))
    running: list[Running] = []
    outcomes: list[Outcome] = []
    logs, work = options.out / "logs", options.out / "work"
    logs.mkdir()
    # Ended like Ctrl-C: whoever cancels a run, as CI does, leaves no process behind.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                row = waiting.pop()
                log = logs / f"{row.id}.log"
                threads = max(1, cores // jobs)
                running.append(Running.start(row, options.fast, work / row.id, log, threads))
            time.sleep(_POLL_SECONDS)
            for one in list(running):
                outcome = one.poll()
                if outcome is not None:
                    running.remove(one)
                    outcomes.append(outcome)
                    display.done(outcome)
            display.show(running)
    finally:
        for one in running:
            one.stop()
        display.close()
        if not options.keep:
            shutil.rmtree(work, ignore_errors=True)
        signal.signal(signal.SIGTERM, before)
    return sorted(outcomes, key=lambda outcome: outcome.row.id)


def run(options: Options) -> list[Outcome]:
    """Run the rows and write ``report.html`` and ``report.json`` to ``out``. Raises UsageError for an unknown row or a
    folder in use, EnvironmentProblem."""
    rows = registry.chosen(options.rows)
    out = options.out.resolve()
    prepare_folder(out)
    console = new_console()
    start = time.monotonic()
    options = Options(rows=options.rows, fast=options.fast, out=out, jobs=options.jobs, keep=options.keep)
    outcomes = _run_all(rows, options, _Display(console, len(rows)))
    seconds = time.monotonic() - start
    write_json(outcomes, out / "report.json")
    write_report(outcomes, out / "report.html", fast=options.fast, seconds=seconds)
    counts = {verdict: sum(one.verdict is verdict for one in outcomes) for verdict in Verdict}
    console.print(
        f"{counts[Verdict.PASSED]} passed, {counts[Verdict.FAILED]} failed, {counts[Verdict.ERROR]} errors "
        f"of {len(outcomes)} rows in {seconds:.0f} s; report: {out / 'report.html'}",
        markup=False,
    )
    return outcomes
