"""What a row is, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its confidence interval at ``level`` (0.95: 95 %)."""

    value: float
    low: float
    high: float
    level: float

    def holds(self, value: float) -> bool:
        """Whether the interval has ``value`` in it."""
        return self.low <= value <= self.high

    def __str__(self) -> str:
        percent = f"{100 * self.level:.6f}".rstrip("0").rstrip(".")
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}] ({percent} %)"


Figure = float | int | bool | str | Interval
Figures = Mapping[str, Figure]


@dataclass(frozen=True, slots=True)
class Picture:
    """A plot or an image as a data URI, with what it shows."""

    caption: str
    uri: str
    width: int = 0
    """In pixels; 0: as wide as the page."""


@dataclass(frozen=True, slots=True)
class Case:
    """One of many small attacks of a row."""

    name: str
    control: str
    """What the attack got with the defence off."""
    control_worked: bool
    defended: str
    """What came of it as shipped."""
    held: bool


@dataclass(frozen=True, slots=True)
class Result:
    """What a row found; see the package for the meaning."""

    control: Figures
    defended: Figures
    control_worked: bool
    held: bool
    plain: str
    cases: Sequence[Case] = ()
    pictures: Sequence[Picture] = ()
    notes: Sequence[str] = ()
    """What a reader must know besides: what is open, what the figures do not show."""

    @classmethod
    def of_cases(
        cls,
        cases: Sequence[Case],
        plain: str,
        *,
        control: Figures | None = None,
        defended: Figures | None = None,
        pictures: Sequence[Picture] = (),
        notes: Sequence[str] = (),
    ) -> Self:
        """Holds if every case did, and its control worked if every case's did; at least one is needed."""
        worked, held = [case.control_worked for case in cases], [case.held for case in cases]
        return cls(
            control={"attacks": len(cases), "succeeded": sum(worked), **(control or {})},
            defended={"attacks": len(cases), "refused": sum(held), **(defended or {})},
            control_worked=bool(cases) and all(worked),
            held=all(held),
            plain=plain,
            cases=cases,
            pictures=pictures,
            notes=notes,
        )


@dataclass(frozen=True, slots=True)
class Context:
    """What a row is given."""

    folder: Path
    fast: bool
    seed: int
    note: Callable[[str], None] = field(compare=False)


@dataclass(frozen=True, slots=True)
class Row:
    """One threat. All texts are for the report: whole sentences or phrases in plain English."""

    id: str
    title: str
    adversary: str
    """Who it is and what it may do."""
    holds: str
    """What it holds: keys, ciphertexts, views."""
    source: str
    """Where the attack comes from: papers, code, or our own review."""
    metric: str
    passes: str
    """The rule by which the row passes."""
    seeds: tuple[int, ...]
    fast_seconds: float
    """About how long the fast version takes on two cores; the full one below. Ten times that is a hang."""
    full_seconds: float
    run: Callable[[Context], Result]

    def seconds(self, fast: bool) -> float:
        """The estimate for a mode."""
        return self.fast_seconds if fast else self.full_seconds
