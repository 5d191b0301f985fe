"""The built-in task: the vendored data is what it says, and splits are fixed and disjoint."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cipherward.errors import EnvironmentProblem, UsageError
from cipherward.site_agent.tasks.base import Records, Split, Task
from cipherward.site_agent.tasks.heart_disease import HeartDisease
from cipherward.site_agent.tasks.heart_disease.data import (
    BUILTIN,
    FEATURES,
    HOSPITALS,
    RANGES,
    TEST_FRACTION,
    rows,
)
from cipherward.site_agent.tasks.heart_disease.defaults import HEART_STUDY
from cipherward.site_agent.tasks.splits import held_out, held_out_by_id, part
from cipherward.site_agent.training import weights

COUNTS = {  # patients, with disease, chol missing, ca missing
    "cleveland": (304, 139, 0, 5),
    "hungary": (293, 106, 23, 290),
    "switzerland": (123, 115, 123, 118),
    "va-long-beach": (200, 149, 56, 198),
}
COLUMN = {name: number for number, name in enumerate(RANGES)}


@pytest.mark.parametrize("hospital", HOSPITALS)
def test_counts(hospital: str) -> None:
    records = rows(f"builtin:{hospital}", Split.ALL)
    patients, ill, no_chol, no_ca = COUNTS[hospital]
    assert len(records) == patients
    assert sum(row.label for row in records) == ill
    assert len({row.patient for row in records}) == patients

    def missing(name: str) -> int:  # the middle of a range stands for missing; 250 mg/dl is a real value too
        return sum(row.features[COLUMN[name]] == 0 for row in records)

    with BUILTIN.open() as file:
        chol = [row["chol"] for row in csv.DictReader(file) if row["dataset"] == HOSPITALS[hospital]]
    assert missing("chol") == no_chol + chol.count("250")
    assert missing("ca") == no_ca


@pytest.mark.parametrize("hospital", HOSPITALS)
def test_features_lie_in_public_ranges_and_are_not_standardised_on_the_data(hospital: str) -> None:
    records = rows(f"builtin:{hospital}", Split.ALL)
    features = np.array([row.features for row in records])
    assert features.shape == (len(records), FEATURES)
    assert np.abs(features).max() <= 1
    few = rows(f"builtin:{hospital}/1of50", Split.ALL)
    by_patient = {row.patient: row for row in records}
    assert all(by_patient[row.patient] == row for row in few), "an encoding depends on other records"


def test_missing_is_not_zero_millimetres_of_mercury(tmp_path: Path) -> None:
    lines = BUILTIN.read_text().splitlines()
    header, first = lines[0].split(","), lines[1].split(",")
    first[header.index("trestbps")] = "0"
    first[header.index("chol")] = "0"
    path = tmp_path / "own.csv"
    path.write_text("\n".join([lines[0], ",".join(first)]))
    (row,) = rows(str(path), Split.ALL)
    assert row.features[COLUMN["trestbps"]] == row.features[COLUMN["chol"]] == 0.0


@pytest.mark.parametrize("hospital", HOSPITALS)
def test_split_is_disjoint_stratified_and_fixed(hospital: str) -> None:
    source = f"builtin:{hospital}"
    train, test = rows(source, Split.TRAIN), rows(source, Split.TEST)
    everyone = rows(source, Split.ALL)
    assert not {row.patient for row in train} & {row.patient for row in test}
    assert len(train) + len(test) == len(everyone)
    for label in (0, 1):
        total = sum(row.label == label for row in everyone)
        assert sum(row.label == label for row in test) == round(TEST_FRACTION * total)
    assert rows(source, Split.TEST) == test
    assert rows(source, Split.TEST, seed=1) != test


def test_the_studys_split_never_moves() -> None:
    """A changed split would put yesterday's training patients into today's test set."""
    test = [row.patient for row in rows("builtin:switzerland", Split.TEST)]
    assert test[:5] == ["599", "600", "602", "606", "607"]


@settings(deadline=None, max_examples=20)
@given(st.sampled_from(sorted(HOSPITALS)), st.integers(1, 40), st.sampled_from(list(Split)))
def test_parts_partition_a_hospital(hospital: str, count: int, split: Split) -> None:
    source = f"builtin:{hospital}"
    whole = [row.patient for row in rows(source, split)]
    parts = [[row.patient for row in rows(f"{source}/{k}of{count}", split)] for k in range(1, count + 1)]
    assert sorted(patient for one in parts for patient in one) == sorted(whole)
    assert max(map(len, parts)) - min(map(len, parts)) <= 4  # four strata, one card each at most


def test_own_file_with_several_records_a_patient(tmp_path: Path) -> None:
    lines = BUILTIN.read_text().splitlines()
    path = tmp_path / "own.csv"
    # Three visits each: rows 1-3 are patient p0 and so on.
    path.write_text(
        "\n".join(["patient_id," + lines[0], *(f"p{i // 3},{line}" for i, line in enumerate(lines[1:91]))])
    )
    train, test = (HeartDisease().load(str(path), split) for split in (Split.TRAIN, Split.TEST))
    assert len(train.patient_ids) == 3 * len(train.patients)
    assert not set(train.patients) & set(test.patients)
    assert len(train.patients) + len(test.patients) == 30


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("builtin:boston", "not a source"),
        ("builtin:cleveland/0of4", "no part 0"),
        ("builtin:cleveland/5of4", "no part 5"),
        ("builtin:switzerland/1of124", "cannot split 123"),
        ("builtin:cleveland/x", "not a source"),
    ],
)
def test_bad_sources(source: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        rows(source, Split.ALL)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda text: text.replace("63,Male", "63,Mail"), "line 2 .*sex is not one of"),
        (lambda text: text.replace("1,63,", "1,old,"), "line 2 .*age is not a number"),
        (lambda text: text.replace("1,63,", "1,nan,"), "line 2 .*age is not a number"),
        (lambda text: text.replace("1,63,", ",63,"), "line 2 .*id is empty"),
        (lambda text: text.replace("thal,num", "thal,target"), "lacks the columns num"),
        (lambda text: text.splitlines()[0], "no records"),
        (lambda text: "", "lacks the columns"),
    ],
)
def test_malformed_files_are_explained(tmp_path: Path, change: object, problem: str) -> None:
    path = tmp_path / "own.csv"
    path.write_text(change("\n".join(BUILTIN.read_text().splitlines()[:3])))  # type: ignore[operator]
    with pytest.raises(UsageError, match=problem) as caught:
        rows(str(path), Split.ALL)
    # A patient's value must not get into an error, and so into a log.
    assert "Mail" not in str(caught.value) and "'old'" not in str(caught.value)


def test_missing_and_binary_files_are_explained(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match=r"no such file.*Check the path"):
        rows(str(tmp_path / "none.csv"), Split.ALL)
    path = tmp_path / "binary.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="UTF-8"):
        rows(str(path), Split.ALL)


def test_the_contract() -> None:
    task = HeartDisease()
    assert isinstance(task, Task)
    records = task.load("builtin:cleveland", Split.TRAIN)
    model = weights.build(task)
    outputs = model(records.features)
    assert weights.count(model) == FEATURES + 1 == 23
    assert task.loss(outputs, records.labels).shape == records.labels.shape
    assert torch.allclose(task.loss(outputs, records.labels), torch.log(torch.tensor(2.0)))  # from zero
    assert task.correct(outputs, records.labels).shape == records.labels.shape
    scores = task.scores(outputs)
    assert scores is not None
    assert scores.shape == records.labels.shape
    assert np.array_equal(weights.initial(task, 1), weights.initial(task, 2))


def test_records_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="2 features, 2 labels and 1 patient"):
        Records(torch.zeros(2, 1), torch.zeros(2), ("a",))
    with pytest.raises(UsageError, match="without a patient id"):
        Records(torch.zeros(2, 1), torch.zeros(2), ("a", ""))


@given(
    st.dictionaries(st.text(min_size=1), st.integers(0, 2), min_size=1, max_size=60),
    st.floats(0.05, 0.95),
    st.integers(0, 5),
)
def test_held_out_depends_on_ids_alone(patients: dict[str, int], fraction: float, seed: int) -> None:
    test = held_out(patients, fraction, seed)
    assert held_out(dict(reversed(patients.items())), fraction, seed) == test
    for label in set(patients.values()):
        group = {patient for patient, value in patients.items() if value == label}
        assert len(group & test) == round(fraction * len(group))


@given(st.sets(st.text(min_size=1), min_size=1, max_size=60), st.floats(0.05, 0.95), st.integers(0, 5))
def test_held_out_by_id_moves_nobody_else(patients: set[str], fraction: float, seed: int) -> None:
    test = held_out_by_id(patients, fraction, seed)
    assert test <= patients
    for gone in patients:
        assert held_out_by_id(patients - {gone}, fraction, seed) == test - {gone}


def test_held_out_by_id_holds_out_the_fraction() -> None:
    patients = [f"p{number}" for number in range(10_000)]
    assert abs(len(held_out_by_id(patients, 0.25)) - 2500) < 5 * (10_000 * 0.25 * 0.75) ** 0.5
    assert held_out_by_id(patients, 0.25, 1) != held_out_by_id(patients, 0.25) < held_out_by_id(patients, 0.5)


def test_one_patient_less_in_an_own_file_moves_no_other(tmp_path: Path) -> None:
    """Epsilon bounds what one patient's presence changes: the training set may change by that patient only."""
    header, *lines = BUILTIN.read_text().splitlines()[:41]
    path = tmp_path / "own.csv"

    def training(records: list[str]) -> set[str]:
        path.write_text("\n".join([header, *records]))
        return {row.patient for row in rows(str(path), Split.TRAIN)}

    before = training(lines)
    assert 0 < len(before) < 40
    for gone in lines:
        assert training([line for line in lines if line != gone]) == before - {gone.split(",")[0]}


@given(st.dictionaries(st.text(min_size=1), st.integers(0, 3), min_size=1, max_size=60), st.data())
def test_parts_are_even(patients: dict[str, int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(patients)))
    parts = [part(patients, index, count) for index in range(1, count + 1)]
    assert sorted(patient for one in parts for patient in one) == sorted(patients)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_a_split_that_leaves_a_side_empty_is_refused(fraction: float) -> None:
    with pytest.raises(UsageError):
        held_out({"a": 0}, fraction)
    with pytest.raises(UsageError):
        held_out_by_id({"a"}, fraction)


def test_the_default_study_keeps_its_epsilon() -> None:
    from cipherward.site_agent.ledger.accounting import epsilon

    sigma = HEART_STUDY.noise_multiplier()
    spent = epsilon(HEART_STUDY.events(sigma), HEART_STUDY.delta)
    assert 0.99 * HEART_STUDY.epsilon < spent <= HEART_STUDY.epsilon
    largest = max(len(rows(f"builtin:{name}", Split.TRAIN)) for name in HOSPITALS)
    assert HEART_STUDY.delta < 1 / (10 * largest)
