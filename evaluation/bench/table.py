"""Figures on the terminal, as they come."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from cipherward.evaluation.bench.records import Record
from cipherward.evaluation.output import console

_SHARED_KEY = "shared-key:"
_COMPARED = {"encrypt", "add", "decrypt", "bytes_up", "bytes_down", "round"}


def _number(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}"


class Table:
    """Prints a line a record and keeps them in ``records``.

    Speeds are also shown as seconds and as MB/s of float32. "x plain" is the record's baseline; "x shared-key"
    is the first parameter set of the shared-key suite at the same size and cohort, where it is in the run.
    """

    def __init__(self, title: str) -> None:
        self.records: list[Record] = []
        self._title, self._console = title, console()

    def __enter__(self) -> Self:
        self._console.print(f"[bold]{self._title}[/]")
        head = f"{'suite':<24}{'parameters':>11}{'sites':>6}{'threads':>8}  {'figure':<14}{'value':>8} {'unit':<9}"
        head += f"{'seconds':>8}{'MB/s':>8}{'baseline':>9}{'x base':>9}{'x shared-key':>13}"
        self._console.print(head, style="dim", soft_wrap=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def note(self, text: str) -> None:
        """A line about what is not measured."""
        self._console.print(text, style="dim", soft_wrap=True)

    def add(self, record: Record) -> None:
        """One more."""
        self.records.append(record)
        ratio = f"{record.value / record.baseline:.3g}" if record.baseline else ""
        baseline = "" if record.baseline is None else _number(record.baseline)
        seconds = rate = ""
        if record.unit == "params/s":
            values = record.params * (record.sites if record.figure == "add" else 1)
            seconds, rate = f"{values / record.value:.3g}", f"{4 * record.value / 1e6:.0f}"
        self._console.print(
            f"{record.suite:<24}{record.params:>11}{record.sites:>6}{record.threads:>8}  {record.figure:<14}"
            f"{_number(record.value):>8} {record.unit:<9}{seconds:>8}{rate:>8}{baseline:>9}{ratio:>9}"
            f"{self._beside_shared_key(record):>13}",
            soft_wrap=True,
        )

    def _beside_shared_key(self, record: Record) -> str:
        if record.suite.startswith(_SHARED_KEY) or record.figure not in _COMPARED:
            return ""
        wanted = (record.figure, record.params, record.sites)
        for other in self.records:
            if other.suite.startswith(_SHARED_KEY) and (other.figure, other.params, other.sites) == wanted:
                return f"{record.value / other.value:.3g}"
        return ""
