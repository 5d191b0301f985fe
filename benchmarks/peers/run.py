"""Measures NVIDIA FLARE's homomorphic encryption and Flower's SecAgg+ from their released packages.

    .venv/bin/python benchmarks/peers/run.py --with-ours --parameters 1000000 --json peers.json --plot peers.png

Each runs in a virtual environment of its own, on one processor; repetitions take turns, so that all of them see
the same machine. README.md beside this file says what each figure holds.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from peer_figures import ratios, records_of
from peer_plot import draw
from peer_process import Answer, Measuring
from peer_systems import OURS, PEERS, Peer, System
from peer_venv import install, is_installed, python_of

from cipherward.crypto.suites.registry import PACKAGES
from cipherward.errors import CipherwardError, EnvironmentProblem, UsageError
from cipherward.evaluation.bench.crypto import plain_rates
from cipherward.evaluation.bench.records import Record, write
from cipherward.evaluation.bench.table import Table
from cipherward.evaluation.output import console

ROOT = Path(__file__).resolve().parents[2]
REPETITIONS = 3
"""Timed ones, after a warm-up."""

screen = console()


@contextmanager
def _doing(what: str) -> Iterator[None]:
    """Shown live on a terminal, as a line with its time elsewhere."""
    start = time.perf_counter()
    if screen.is_terminal:
        with screen.status(what):
            yield
    else:
        yield
    seconds = time.perf_counter() - start
    screen.print(f"- {what}: {seconds:.1f} s", style="dim", soft_wrap=True)


def check_memory(systems: Sequence[System], parameters: int, meminfo: str) -> None:
    """EnvironmentProblem if the machine has not the memory to measure all of them at once."""
    available = next(
        int(line.split()[1]) * 1024 for line in meminfo.splitlines() if line.startswith("MemAvailable:")
    )
    needed = parameters * sum(system.bytes_a_parameter for system in systems)
    if needed > available:
        raise EnvironmentProblem(
            f"{parameters} parameters do not fit",
            why=f"measuring takes about {needed / 1e9:.0f} GB and {available / 1e9:.0f} GB are free",
            fix="Measure fewer parameters, or one peer at a time with --peer",
        )


def measure(systems: Sequence[System], environments: Path, parameters: int) -> list[Record]:
    """All of them at one size, in turns."""
    check_memory(systems, parameters, Path("/proc/meminfo").read_text())
    update = np.random.default_rng(parameters).normal(0, 0.05, parameters).astype(np.float32)
    with ExitStack() as stack:
        running = []
        for system in systems:
            python = (
                python_of(environments / system.name) if isinstance(system, Peer) else Path(sys.executable)
            )
            log = environments / f"measure-{system.name.replace(':', '-')}.log"
            running.append(stack.enter_context(Measuring(system, python, parameters, log)))
        for each in running:
            with _doing(f"starting {each.system.label}"):
                each.start()
        answers: list[list[Answer]] = [[] for _ in running]
        for repetition in range(1 + REPETITIONS):
            for each, found in zip(running, answers, strict=True):
                title = f"repetition {repetition} of {REPETITIONS}" if repetition else "warm-up"
                with _doing(f"{parameters} parameters, {title}, {each.system.label}"):
                    found.append(each.repeat(peaks=repetition == 0))
        records = []
        for each, found in zip(running, answers, strict=True):
            plain = plain_rates(update, each.system.sites)
            records += records_of(each.system, parameters, each.threads, found, plain)
    return records


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--peer",
        action="append",
        choices=[peer.name for peer in PEERS],
        help="repeat for several (default: all)",
    )
    parser.add_argument(
        "--parameters", action="append", type=int, help="model size; repeat for several (default: 1000000)"
    )
    parser.add_argument("--with-ours", action="store_true", help="our parameter sets take turns with them")
    parser.add_argument("--json", type=Path, help="write the records to this file")
    parser.add_argument("--plot", type=Path, help="write a picture of them to this PNG file")
    parser.add_argument(
        "--venv",
        type=Path,
        default=ROOT / "build" / "peers",
        help="folder of their environments (default: %(default)s)",
    )
    chosen = parser.parse_args(arguments)
    chosen.parameters = chosen.parameters or [1_000_000]
    if min(chosen.parameters) < 1:
        parser.error("a model has at least one parameter")
    return chosen


def run(chosen: argparse.Namespace) -> None:
    """What the command line asks for."""
    peers = [peer for peer in PEERS if chosen.peer is None or peer.name in chosen.peer]
    ours = [each for each in OURS if chosen.with_ours and each.arguments[1] in PACKAGES]
    for out in (chosen.json, chosen.plot):  # now, and not after minutes of measuring
        if out is not None and not out.absolute().parent.is_dir():
            raise UsageError(f"cannot write {out}", why="its folder does not exist", fix="Make it first")
    folder: Path = chosen.venv.resolve()
    for peer in peers:
        if not is_installed(peer, folder / peer.name):
            with _doing(f"installing {peer.label} into {folder / peer.name}"):
                install(peer, folder / peer.name)
    records: list[Record] = []
    for parameters in chosen.parameters:
        records += measure([*peers, *ours], folder, parameters)
        if chosen.json is not None:  # after each size: the next may fail or be interrupted
            write(records, chosen.json)
    with Table("peers and ours, one processor" if ours else "peers, one processor") as table:
        for record in records:
            table.add(record)
    for line in ratios(records, [each.label for each in ours], [peer.label for peer in peers]):
        screen.print(line, soft_wrap=True)
    if chosen.plot is not None:
        draw(records, chosen.plot)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Exit status 0, an error's own, or 130 if interrupted."""
    try:
        run(_arguments(arguments))
    except CipherwardError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("interrupted; environments that were installed are kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
