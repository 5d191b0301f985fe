"""Figures on the terminal, as they come."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from cipherward.evaluation.bench.records import Record
from cipherward.evaluation.output import console


def _number(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}"


class Table:
    """Prints a line a record and keeps them in ``records``."""

    def __init__(self, title: str) -> None:
        self.records: list[Record] = []
        self._title, self._console = title, console()

    def __enter__(self) -> Self:
        self._console.print(f"[bold]{self._title}[/]")
        head = f"{'suite':<26}{'parameters':>11}{'sites':>6}  {'figure':<15}{'value':>10} {'unit':<9}"
        head += f"{'baseline':>10}  ratio"
        self._console.print(head, style="dim")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def add(self, record: Record) -> None:
        """One more."""
        self.records.append(record)
        ratio = "" if not record.baseline else f"{record.value / record.baseline:.3g}"
        baseline = "" if record.baseline is None else _number(record.baseline)
        self._console.print(
            f"{record.suite:<26}{record.params:>11}{record.sites:>6}  {record.figure:<15}"
            f"{_number(record.value):>10} {record.unit:<9}{baseline:>10}  {ratio}"
        )
