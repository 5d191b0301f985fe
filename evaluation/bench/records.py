"""What every benchmark writes: one record a figure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from cipherward.durable import write_file


@dataclass(frozen=True, slots=True)
class Record:
    """A measured figure. ``baseline`` is the same figure of the yardstick that the benchmark names, measured
    in the same run and unit."""

    figure: str
    value: float
    unit: str
    suite: str
    params: int
    sites: int
    threads: int
    device: str
    baseline: float | None


def write(records: list[Record], path: Path) -> None:
    """As JSON."""
    write_file(path, json.dumps([asdict(record) for record in records], indent=1).encode() + b"\n")
