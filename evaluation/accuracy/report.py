"""The results for people: a table on the terminal, the same in Markdown, and plots."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from cipherward.evaluation.accuracy.cells import Cell
from cipherward.evaluation.accuracy.constants import Arm
from cipherward.evaluation.accuracy.journal import Results
from cipherward.evaluation.accuracy.partition import Partition
from cipherward.evaluation.accuracy.statistics import Interval, paired_interval

_COLOURS = {
    Arm.ALONE: "#9aa5b1",
    Arm.FEDAVG: "#c9b458",
    Arm.DP_FEDSGD: "#0b6e4f",
    Arm.POOLED_DP: "#3d7ea6",
    Arm.POOLED: "#222222",
}
_NAMES = {Partition.IID: "IID", Partition.LABEL_SKEW: "label-skewed"}
Key = tuple[Partition, int, float]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: AUCs by arm and seed; ``gap``: dp-fedsgd less pooled-dp, paired by seed."""

    partition: Partition
    sites: int
    epsilon: float
    aucs: dict[Arm, list[float]]
    gap: Interval | None


def describe(cell: Cell) -> str:
    """A cell in a few words."""
    where = "" if cell.partition is None else f", {cell.sites} sites, {_NAMES[cell.partition]}"
    return f"{cell.arm}{where}, epsilon {cell.epsilon:g}, seed {cell.seed}"


def rows(results: Results) -> list[Row]:
    """In the order of partition, sites and epsilon. The arms in one place stand in every line."""
    at_sites = {_key(one.cell) for one in results.cells if one.cell.partition is not None}
    found = []
    for partition, sites, epsilon in sorted(
        at_sites, key=lambda key: (list(Partition).index(key[0]), key[1:])
    ):
        by_arm: dict[Arm, dict[int, float]] = {}
        for one in results.cells:
            cell = one.cell
            mine = cell.partition is None or (cell.partition, cell.sites) == (partition, sites)
            if mine and cell.epsilon == epsilon:
                by_arm.setdefault(cell.arm, {})[cell.seed] = one.auc
        found.append(
            Row(
                partition,
                sites,
                epsilon,
                {arm: list(by_arm[arm].values()) for arm in Arm if arm in by_arm},
                _gap(by_arm.get(Arm.DP_FEDSGD, {}), by_arm.get(Arm.POOLED_DP, {})),
            )
        )
    return found


def _key(cell: Cell) -> Key:
    if cell.partition is None:
        raise ValueError("a cell in one place has no key")
    return cell.partition, cell.sites, cell.epsilon


def _gap(shared: dict[int, float], pooled: dict[int, float]) -> Interval | None:
    seeds = sorted(shared.keys() & pooled.keys())
    if len(seeds) < 2:
        return None
    return paired_interval([shared[seed] for seed in seeds], [pooled[seed] for seed in seeds])


def _figure(values: Sequence[float] | None) -> str:
    """Mean and standard deviation."""
    if not values:
        return "-"
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def _interval(gap: Interval | None) -> str:
    return "-" if gap is None else f"{gap.mean:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})"


def _lines(results: Results) -> tuple[list[str], list[list[str]]]:
    head = ["patients", "sites", "epsilon", *(arm.value for arm in Arm), "dp-fedsgd less pooled-dp"]
    return head, [
        [
            _NAMES[row.partition], str(row.sites), f"{row.epsilon:g}",
            *(_figure(row.aucs.get(arm)) for arm in Arm), _interval(row.gap),
        ]
        for row in rows(results)
    ]  # fmt: skip


def show(console: Console, results: Results) -> None:
    """The table on the terminal."""
    head, lines = _lines(results)
    table = Table(title="AUC on the test split, mean ± sd over seeds", box=None, pad_edge=False)
    for name in head:
        table.add_column(name, justify="left" if name == head[0] else "right")
    for line in lines:
        table.add_row(*line)
    console.print()
    console.print(table)


def markdown(results: Results) -> str:
    """The table, and the constants behind it."""
    head, lines = _lines(results)
    constants = [
        "arm",
        "epsilon",
        "rounds",
        "steps",
        "q",
        "learning rate",
        "C",
        "sigma",
        "metrics' noise",
        "spent",
    ]
    table = [
        [
            one.arm, f"{one.epsilon:g}", str(one.rounds), str(one.steps), f"{one.sampling_rate:g}",
            f"{one.learning_rate:g}", *([f"{one.clip_norm:g}", f"{one.noise_multiplier:g}",
            f"{one.metrics_noise_multiplier:.0f}", f"{one.spent:.3f}"] if one.noise_multiplier else ["-"] * 4),
        ]
        for one in results.settings.constants
    ]  # fmt: skip
    return f"{_markdown(head, lines)}\n{_markdown(constants, table)}"


def _markdown(head: list[str], lines: list[list[str]]) -> str:
    rule = ["---"] * len(head)
    return "".join("| " + " | ".join(line) + " |\n" for line in [head, rule, *lines])


def plots(results: Results) -> Iterator[tuple[str, bytes]]:
    """For each partition an SVG file: AUC over the number of sites, a panel an epsilon."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    every = rows(results)
    for partition in Partition:
        chosen = [row for row in every if row.partition is partition]
        if not chosen:
            continue
        epsilons = sorted({row.epsilon for row in chosen})
        with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
            figure = Figure(figsize=(2.6 * len(epsilons) + 0.6, 3.2), layout="constrained")
            panels = figure.subplots(1, len(epsilons), sharey=True, squeeze=False)[0]
            for axes, epsilon in zip(panels, epsilons, strict=True):
                _panel(axes, [row for row in chosen if row.epsilon == epsilon])
                axes.set_title("no privacy" if math.isinf(epsilon) else f"epsilon {epsilon:g}")
            panels[0].set_ylabel(f"AUC, {_NAMES[partition]} patients")
            handles: dict[str, Any] = {}
            for axes in panels:
                handles.update(
                    {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
                )
            figure.legend(
                handles.values(), handles.keys(), ncols=5, frameon=False, loc="outside lower center"
            )
            out = io.BytesIO()
            figure.savefig(out, format="svg", metadata={"Date": None})
        yield f"auc-{partition.value}.svg", out.getvalue()


def _panel(axes: Any, chosen: list[Row]) -> None:
    places = range(len(chosen))
    for arm in Arm:
        if not all(arm in row.aucs for row in chosen):
            continue
        means = np.array([np.mean(row.aucs[arm]) for row in chosen])
        spreads = np.array([np.std(row.aucs[arm]) for row in chosen])
        line = "--" if arm.central else "-"
        axes.plot(
            places,
            means,
            line,
            marker="" if arm.central else "o",
            markersize=4,
            color=_COLOURS[arm],
            label=arm.value,
        )
        axes.fill_between(
            places, means - spreads, means + spreads, color=_COLOURS[arm], alpha=0.15, linewidth=0
        )
    axes.set_xticks(places, [str(row.sites) for row in chosen])
    axes.set_xlabel("sites")
