"""The report for people: one self-contained HTML page."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from cipherward import __version__
from cipherward.durable import write_file
from cipherward.evaluation.threats.outcome import Outcome
from cipherward.evaluation.threats.row import Figure


def figure_text(figure: Figure) -> str:
    """For people."""
    if isinstance(figure, bool):
        return "yes" if figure else "no"
    if isinstance(figure, float):
        return f"{figure:.4g}"
    return str(figure)


def write_report(outcomes: Sequence[Outcome], path: Path, *, fast: bool, seconds: float) -> None:
    """Write the page; raises EnvironmentProblem."""
    environment = Environment(
        loader=PackageLoader("cipherward.evaluation.threats", "."), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["figure"] = figure_text
    page = environment.get_template("report.html.j2").render(
        outcomes=outcomes,
        fast=fast,
        seconds=seconds,
        version=__version__,
        machine=f"{platform.machine()}, Python {platform.python_version()}",
        date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    )
    write_file(path, page.encode())
