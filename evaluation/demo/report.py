"""The demo's report: one self-contained HTML page with plots."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from cipherward import __version__
from cipherward.durable import write_file
from cipherward.evaluation.demo.results import DemoResult, figure

_COLOURS = {"alone": "#9aa5b1", "federated": "#0b6e4f", "pooled_dp": "#3d7ea6", "pooled": "#c9b458"}


def _picture(draw: Callable[[Any], None], width: float = 7.2, height: float = 3.2) -> str:
    """A plot as a data URI."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.add_subplot())
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(out.getvalue()).decode()


def _aucs(result: DemoResult) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        bars = [
            ("alone, same DP", "alone", [site.auc_local for site in result.sites]),
            ("federated, encrypted, DP", "federated", [site.auc_federated for site in result.sites]),
            ("pooled, DP", "pooled_dp", [site.auc_pooled_dp for site in result.sites]),
            ("pooled, no DP", "pooled", [site.auc_pooled for site in result.sites]),
        ]
        for offset, (label, colour, values) in enumerate(bars):
            places = [index + (offset - 1.5) * 0.2 for index in range(len(values))]
            axes.bar(places, [value or 0.0 for value in values], 0.19, label=label, color=_COLOURS[colour])
        axes.set_xticks(range(len(result.sites)), [f"{site.name}\n{site.patients}" for site in result.sites])
        axes.set_ylim(0.4, 1.0)
        axes.axhline(0.5, color="#999", linewidth=0.7, linestyle=":")
        axes.set_ylabel("AUC on its own held-out patients")
        axes.legend(ncols=4, fontsize=7.5, frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.14))

    return draw


def _seconds(result: DemoResult) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        numbers = [entry.round for entry in result.rounds]
        after = [entry.seconds_after_join for entry in result.rounds]
        before = [entry.seconds - entry.seconds_after_join for entry in result.rounds]
        axes.bar(numbers, before, label="training and joining", color="#9aa5b1")
        axes.bar(numbers, after, bottom=before, label="encrypt, send, sum, open, apply", color="#0b6e4f")
        axes.set_xlabel("round")
        axes.set_ylabel("seconds")
        axes.set_xticks(numbers)
        axes.legend(ncols=2, frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.18))

    return draw


def write_report(result: DemoResult, path: Path) -> None:
    """Write the page; raises EnvironmentProblem."""
    environment = Environment(
        loader=PackageLoader("cipherward.evaluation.demo", "."), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["figure"] = figure
    page = environment.get_template("report.html.j2").render(
        result=result,
        version=__version__,
        aucs=_picture(_aucs(result)),
        seconds=_picture(_seconds(result), 7.2, 2.6),
    )
    write_file(path, page.encode())
