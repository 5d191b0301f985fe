"""What became of a row in a run, and ``report.json``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from cipherward.durable import write_file
from cipherward.evaluation.threats.row import Figures, Interval, Result, Row


class Verdict(StrEnum):
    """An error is a row that can tell nothing: it raised, hung, or its control failed."""

    PASSED = "passed"
    FAILED = "failed"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Outcome:
    """``result`` is None for a row that raised; ``error`` then says why."""

    row: Row
    fast: bool
    seconds: float
    result: Result | None
    error: str = ""

    @property
    def verdict(self) -> Verdict:
        """See Verdict."""
        if self.result is None or not self.result.control_worked:
            return Verdict.ERROR
        return Verdict.PASSED if self.result.held else Verdict.FAILED

    @property
    def reason(self) -> str:
        """For an error, what it is."""
        if self.result is not None and not self.result.control_worked:
            return "the attack did not succeed with the defence off, so nothing is shown"
        return self.error

    def to_json(self) -> dict[str, Any]:
        """One entry of the report."""
        result, row = self.result, self.row
        return {
            "id": row.id,
            "title": row.title,
            "control": {} if result is None else _figures(result.control),
            "defended": {} if result is None else _figures(result.defended),
            "passed": self.verdict is Verdict.PASSED,
            "control_worked": result is not None and result.control_worked,
            "seconds": round(self.seconds, 2),
            "verdict": self.verdict.value,
            "error": self.reason,
            "plain": "" if result is None else result.plain,
            "cases": [] if result is None else [asdict(case) for case in result.cases],
            "notes": [] if result is None else list(result.notes),
            "adversary": row.adversary,
            "holds": row.holds,
            "source": row.source,
            "metric": row.metric,
            "passes": row.passes,
            "seeds": list(row.seeds),
            "fast": self.fast,
        }


def _figures(figures: Figures) -> dict[str, Any]:
    return {
        name: asdict(figure) if isinstance(figure, Interval) else figure for name, figure in figures.items()
    }


def write_json(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write ``report.json``: a list of entries. Raises EnvironmentProblem."""
    # NaN has no place in JSON: a row that found one is to be mended.
    text = json.dumps([one.to_json() for one in outcomes], indent=1, allow_nan=False)
    write_file(path, text.encode() + b"\n")
