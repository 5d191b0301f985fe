"""The study's results on disk: every finished cell at once, so that whatever ends a run loses only what it was at."""

from __future__ import annotations

import math
from pathlib import Path

from pydantic import ValidationError

from cipherward.durable import explained, read_file, write_file
from cipherward.errors import FormatError, UsageError
from cipherward.evaluation.accuracy.cells import Cell, CellResult, Entry, Plan
from cipherward.evaluation.accuracy.sums import Encryption

RESULTS = "results.json"
_VERSION = 1


class ArmConstants(Entry):
    """What an arm ran with at one epsilon; all of it is public. ``spent``: epsilon by the accountant."""

    arm: str
    epsilon: float
    rounds: int
    steps: int
    sampling_rate: float
    learning_rate: float
    clip_norm: float
    metrics_noise_multiplier: float
    noise_multiplier: float
    spent: float


class Settings(Entry):
    """What results must have in common to be in one table."""

    version: int = _VERSION
    data: str
    """SHA-256 of the file."""
    encryption: Encryption
    delta: float
    constants: list[ArmConstants]


class Results(Entry):
    """The file."""

    settings: Settings
    cells: list[CellResult]


def constants_of(plan: Plan) -> list[ArmConstants]:
    """As written to the file."""
    return [
        ArmConstants(
            arm=arm.value,
            epsilon=epsilon,
            rounds=one.schedule.rounds,
            steps=one.schedule.steps,
            sampling_rate=one.schedule.sampling_rate,
            learning_rate=one.schedule.learning_rate,
            clip_norm=one.schedule.clip_norm,
            metrics_noise_multiplier=0.0 if math.isinf(epsilon) else one.schedule.metrics_noise_multiplier,
            noise_multiplier=one.noise_multiplier,
            spent=one.spent,
        )
        for (arm, epsilon), one in plan.items()
    ]


class Journal:
    """Results in one folder. A cell that is there is never computed again."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        """Begin there or go on. Raises UsageError if the folder has results of other data or constants, FormatError
        for a damaged file."""
        with explained("create", folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / RESULTS
        self.results = Results(settings=settings, cells=[])
        if self._path.exists():
            before = read(folder)
            self.results = Results(settings=_merged(before.settings, settings, folder), cells=before.cells)
        self._done = {result.cell for result in self.results.cells}

    def has(self, cell: Cell) -> bool:
        """Whether it is done."""
        return cell in self._done

    def add(self, result: CellResult) -> None:
        """Durably, before it returns."""
        self._done.add(result.cell)
        self.results.cells.append(result)
        write_file(self._path, self.results.model_dump_json(indent=1).encode() + b"\n")


def read(folder: Path) -> Results:
    """The results in a folder. Raises EnvironmentProblem or FormatError."""
    path = folder / RESULTS
    try:
        return Results.model_validate_json(read_file(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise FormatError(
            f"{path} is not a file of results", why=first["msg"], fix="Choose another folder with --out"
        ) from error


def _merged(before: Settings, now: Settings, folder: Path) -> Settings:
    """Both runs' constants, which must agree where they overlap."""
    known = {(one.arm, one.epsilon): one for one in before.constants}
    same = (before.version, before.data, before.encryption, before.delta) == (
        now.version, now.data, now.encryption, now.delta,
    )  # fmt: skip
    if not same or any(known.get((one.arm, one.epsilon), one) != one for one in now.constants):
        raise UsageError(
            f"{folder} has results of another study",
            why="its data, encryption or constants differ, and one table would mix them",
            fix="Choose another folder with --out",
        )
    known.update({(one.arm, one.epsilon): one for one in now.constants})
    return now.model_copy(update={"constants": list(known.values())})
