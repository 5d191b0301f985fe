"""UCI Heart Disease: reading, cleaning and encoding. Every range is a public clinical one and none is
computed from patients, so that preprocessing releases nothing.

The four hospitals differ: Switzerland recorded no cholesterol (written as 0), as did 49 of the 200 patients
of VA Long Beach; vessels (``ca``) and thallium scan (``thal``) are mostly missing outside Cleveland. A
missing number becomes the middle of its range; a missing category sets none of its indicators. Further
indicators for missing numbers were tried and cost accuracy under privacy: they add to a patient's clipped
norm more than they tell.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cipherward.durable import read_file
from cipherward.errors import UsageError
from cipherward.site_agent.tasks.base import Split
from cipherward.site_agent.tasks.splits import held_out, held_out_by_id, part

BUILTIN = Path(__file__).with_name("heart_disease_uci.csv")
HOSPITALS = {
    "cleveland": "Cleveland",
    "hungary": "Hungary",
    "switzerland": "Switzerland",
    "va-long-beach": "VA Long Beach",
}
"""Names in sources -> the file's ``dataset`` column."""

TEST_FRACTION = 1 / 3
"""Of each label at each hospital, in the builtin data; of all patients on average, in a CSV file. Switzerland
has 8 patients without disease: a smaller part would hold out two."""

# Public clinical ranges (low, high), scaled to [-1, 1]; what lies outside is clipped to the end.
RANGES = {
    "age": (30.0, 80.0),  # years
    "trestbps": (90.0, 200.0),  # resting systolic blood pressure, mmHg
    "chol": (100.0, 400.0),  # serum cholesterol, mg/dl
    "thalch": (60.0, 200.0),  # maximum heart rate under exercise, 1/min
    "oldpeak": (0.0, 4.0),  # ST depression by exercise, mm
    "ca": (0.0, 3.0),  # major vessels coloured by fluoroscopy
}
ZERO_IS_MISSING = frozenset({"trestbps", "chol"})
BINARY = {"sex": ("Female", "Male"), "fbs": ("FALSE", "TRUE"), "exang": ("FALSE", "TRUE")}  # -1, 1; missing 0
CATEGORIES = {
    "cp": ("asymptomatic", "non-anginal", "atypical angina", "typical angina"),
    "restecg": ("lv hypertrophy", "st-t abnormality", "normal"),
    "slope": ("upsloping", "flat", "downsloping"),
    "thal": ("normal", "fixed defect", "reversable defect"),
}
FEATURES = len(RANGES) + len(BINARY) + sum(len(values) for values in CATEGORIES.values())
_SOURCE = re.compile(r"builtin:([a-z-]+)(?:/(\d{1,4})of(\d{1,4}))?\Z")


@dataclass(frozen=True, slots=True)
class Row:
    """One record: encoded features (FEATURES numbers in [-1, 1]), label 0 or 1, patient id."""

    features: tuple[float, ...]
    label: int
    patient: str


def rows(source: str, split: Split, *, seed: int = 0) -> list[Row]:
    """The records of a source, in the file's order.

    ``builtin:HOSPITAL``, ``builtin:HOSPITAL/KofN`` (a K-th of it, for studies with more sites) or the path of
    a CSV file with the same columns; there the patient is ``patient_id`` or else ``id``, and may have several
    rows. Which patients are held out depends on ``seed`` (0: the one split that studies use; others for
    repeated cross-validation). In a CSV file it is decided for each patient by the id alone, so that one
    patient more or less moves no other; in the builtin data, whose list is fixed and public, by label over
    the whole hospital, so a part's test patients are among the hospital's. Raises UsageError for an unknown
    source or malformed rows, EnvironmentProblem for an unreadable file.
    """
    if not source.startswith("builtin:"):
        own = _read(Path(source))
        return _split(own, held_out_by_id({row.patient for row in own}, TEST_FRACTION, seed), split)
    match = _SOURCE.match(source)
    if match is None or match[1] not in HOSPITALS:
        raise UsageError(
            f"{source!r} is not a source of the heart-disease task",
            fix=f"Use builtin:HOSPITAL or builtin:HOSPITAL/KofN with {', '.join(HOSPITALS)}, or a CSV file",
        )
    records = _read(BUILTIN, HOSPITALS[match[1]])
    test = held_out(_labels(records), TEST_FRACTION, seed)
    chosen = _split(records, test, split)
    if match[2] is None:
        return chosen
    members = part(_strata(records, test), int(match[2]), int(match[3]))
    return [row for row in chosen if row.patient in members]


def _labels(records: list[Row]) -> dict[str, int]:
    """Each patient's label: 1 if any of the records has it."""
    labels: dict[str, int] = {}
    for row in records:
        labels[row.patient] = max(row.label, labels.get(row.patient, 0))
    return labels


def _strata(records: list[Row], test: frozenset[str]) -> dict[str, int]:
    """Patients by label and side of the split, so that every part gets its share of all four."""
    return {patient: 2 * label + (patient in test) for patient, label in _labels(records).items()}


def _split(records: list[Row], test: frozenset[str], split: Split) -> list[Row]:
    if split is Split.ALL:
        return records
    return [row for row in records if (row.patient in test) == (split is Split.TEST)]


def _read(path: Path, hospital: str | None = None) -> list[Row]:
    try:
        text = read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not a CSV file in UTF-8", why=f"byte {error.start} is not UTF-8"
        ) from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    columns = set(reader.fieldnames or ())
    identifier = "patient_id" if "patient_id" in columns else "id"
    missing = {identifier, "num", *RANGES, *BINARY, *CATEGORIES} - columns
    if missing:
        raise UsageError(
            f"{path} lacks the columns {', '.join(sorted(missing))}",
            why="the heart-disease task reads the columns of UCI Heart Disease",
        )
    found = []
    for record in reader:
        if hospital is not None and record["dataset"] != hospital:
            continue
        try:
            patient = (record[identifier] or "").strip()
            if not patient:
                raise ValueError(f"{identifier} is empty")
            found.append(Row(_features(record), int(_number(record, "num") > 0), patient))
        except (ValueError, TypeError) as error:
            raise UsageError(f"{path} line {reader.line_num} cannot be read", why=str(error)) from error
    if not found:
        raise UsageError(f"{path} has no records")
    return found


def _features(record: Mapping[str, str | None]) -> tuple[float, ...]:
    values = []
    for column, (low, high) in RANGES.items():
        number = _number(record, column) if record[column] else None
        if number is None or (number == 0 and column in ZERO_IS_MISSING):
            values.append(0.0)
            continue
        scaled = (2 * number - low - high) / (high - low)
        if scaled != scaled:
            raise ValueError(f"{column} is not a number")
        values.append(min(1.0, max(-1.0, scaled)))
    for column, (no, yes) in BINARY.items():
        values.append({no: -1.0, yes: 1.0}[_known(record, column, (no, yes))] if record[column] else 0.0)
    for column, categories in CATEGORIES.items():
        value = _known(record, column, categories) if record[column] else None
        values += [float(value == category) for category in categories]
    return tuple(values)


def _number(record: Mapping[str, str | None], column: str) -> float:
    # The message must not quote the value: it is a patient's, and errors reach logs.
    try:
        return float(record[column] or "")
    except ValueError:
        raise ValueError(f"{column} is not a number") from None


def _known(record: Mapping[str, str | None], column: str, allowed: tuple[str, ...]) -> str:
    value = record[column] or ""
    if value not in allowed:
        raise ValueError(f"{column} is not one of {', '.join(allowed)}")
    return value
