"""Bytes a parameter and encryption speed of everything measured, as one picture.

    .venv/bin/python benchmarks/peers/peer_plot.py crypto.json peers.json --out comparison.png

takes the records of `cipherward bench crypto --json` and `run.py --json`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from peer_figures import merged

from cipherward.durable import explained
from cipherward.errors import CipherwardError, FormatError, UsageError
from cipherward.evaluation.bench.records import Record

PLAIN = "plain float32"
# In the order of the picture, from the top: the suite of the records, and how it is called there.
ROWS = (
    (PLAIN, "plain float32"),
    ("quorum:q32", "Cipherward quorum q32"),
    ("quorum:q16", "Cipherward quorum q16"),
    ("shared-key:seal-4096-48", "Cipherward shared-key"),
    ("nvflare 2.9.0 HE", "NVIDIA FLARE 2.9.0 HE"),
    ("flwr 1.41 SecAgg+", "Flower 1.41 SecAgg+"),
)
_OURS, _THEIRS, _PLAIN = "#1f5fa8", "#9a9a9a", "#d0d0d0"


@dataclass(frozen=True, slots=True)
class Bar:
    """One row: bytes a parameter up, and parameters a second to encrypt; None where there is no record."""

    suite: str
    label: str
    bytes_up: float | None
    encrypt: float | None


def read(path: Path) -> list[Record]:
    """Records as ``--json`` writes them; FormatError for anything else."""
    with explained("read", path):
        content = path.read_bytes()
    try:
        return [Record(**entry) for entry in json.loads(content)]
    except (ValueError, TypeError) as error:
        raise FormatError(f"{path} does not hold a benchmark's records", why=str(error)) from error


def bars(records: Sequence[Record], parameters: int) -> list[Bar]:
    """The rows for one model size, single-threaded; a system without any record there has no row."""

    def value(suite: str, figure: str) -> float | None:
        for each in reversed(records):  # later ones win: cohorts differ between files
            if (each.suite, each.params, each.figure, each.threads) == (suite, parameters, figure, 1):
                return each.value
        return None

    plain = [
        each.baseline for each in records if each.params == parameters and each.figure == "encrypt" and each.baseline
    ]  # fmt: skip
    found = [Bar(*ROWS[0], 4.0, max(plain))] if plain else []
    for suite, label in ROWS[1:]:
        bar = Bar(suite, label, value(suite, "bytes_up"), value(suite, "encrypt"))
        if bar.bytes_up is not None or bar.encrypt is not None:
            found.append(bar)
    return found


def _colour(bar: Bar) -> str:
    if bar.suite == PLAIN:
        return _PLAIN
    return _OURS if ":" in bar.suite else _THEIRS


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def _size(parameters: int) -> str:
    return f"{parameters / 1e6:g} M parameters" if parameters >= 1_000_000 else f"{parameters} parameters"


def draw(records: Sequence[Record], out: Path) -> None:
    """A PNG for the largest size that most systems have. UsageError if no two can be compared."""
    sizes = sorted({each.params for each in records})
    if not sizes:
        raise UsageError("there is nothing to plot", why="no records were given")
    parameters = max(sizes, key=lambda size: (len(bars(records, size)), size))
    rows = bars(records, parameters)
    if len(rows) < 2:
        raise UsageError("there is nothing to plot", why="no two systems were measured at one size")
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(10, 0.7 + 0.42 * len(rows)), sharey=True, layout="constrained"
    )
    try:
        labels, colours = [row.label for row in rows], [_colour(row) for row in rows]
        sent = [row.bytes_up or 0.0 for row in rows]
        left.barh(labels, sent, color=colours)
        left.set_title("bytes sent a parameter (lower is better)", fontsize=10, loc="left")
        speed = [(row.encrypt or 0.0) / 1e6 for row in rows]
        right.barh(labels, speed, color=colours, log=True)
        right.set_title("encrypted, million parameters/s, one thread, log scale", fontsize=10, loc="left")
        for axes, values in ((left, sent), (right, speed)):
            for place, value in enumerate(values):
                axes.annotate(
                    _number(value) if value else "not measured",
                    (value or axes.get_xlim()[0], place), xytext=(4, 0), textcoords="offset points",
                    va="center", fontsize=9,
                )  # fmt: skip
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(axis="y", length=0)
            axes.tick_params(axis="x", labelsize=8)
        right.xaxis.set_major_formatter("{x:,g}")
        right.minorticks_off()
        left.invert_yaxis()  # shared: the first row on top
        left.set_xlim(0, 1.12 * max(sent))
        shown = [value for value in speed if value]
        right.set_xlim(min(shown) / 2, 4 * max(shown))
        figure.suptitle(_size(parameters), fontsize=11, x=0.01, ha="left")
        with explained("write", out):
            figure.savefig(out, dpi=150, format="png")
    finally:
        pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("records", nargs="+", type=Path, help="files that --json wrote; later ones win")
    parser.add_argument("--out", required=True, type=Path, help="the PNG to write")
    chosen = parser.parse_args(arguments)
    try:
        draw(merged(*map(read, chosen.records)), chosen.out)
    except CipherwardError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
