"""Splitting patients: fixed by a seed and the ids alone, so that the same patients are held out on every run
and every machine, whatever the order of the file or the version of a random generator.

For a hospital's own data use ``held_out_by_id``: differential privacy bounds what one patient's presence changes,
so one patient must not decide on which side of the split another one falls.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from cipherward.errors import UsageError


def _hash(purpose: str, seed: int, patient: str) -> bytes:
    return hashlib.sha256(f"{purpose}/{seed}/{patient}".encode()).digest()


def _shuffled(patients: Mapping[str, int], seed: int, purpose: str) -> dict[int, list[str]]:
    """Patients by label, each list in an order that depends on seed, purpose and ids only."""
    by_label: dict[int, list[str]] = {}
    for patient in sorted(patients, key=lambda patient: _hash(purpose, seed, patient)):
        by_label.setdefault(patients[patient], []).append(patient)
    return by_label


def held_out_by_id(patients: Iterable[str], fraction: float, seed: int = 0) -> frozenset[str]:
    """The test patients of a hospital's own data: each with probability ``fraction``, by a hash of the id.

    A patient's side depends on no other patient and on no label, so adding or removing one changes the
    training set by that one at most, which is what the ledger's epsilon is about. The share held out is
    ``fraction`` on average only. Raises UsageError for a fraction outside (0, 1).
    """
    _check_fraction(fraction)
    cut = fraction * 2.0**256  # Python compares an int with a float exactly
    return frozenset(
        patient for patient in patients if int.from_bytes(_hash("test", seed, patient), "big") < cut
    )


def held_out(patients: Mapping[str, int], fraction: float, seed: int = 0) -> frozenset[str]:
    """The test patients: ``fraction`` of each label's, rounded. ``patients`` maps id to label.

    Only for public data whose list of patients is fixed, such as the demonstration's. One patient more or
    less can move others across the cut, so epsilon is conditional on this split; a hospital's own data takes
    ``held_out_by_id``. Raises UsageError for a fraction outside (0, 1).
    """
    _check_fraction(fraction)
    groups = _shuffled(patients, seed, "test").values()
    return frozenset(patient for group in groups for patient in group[: round(fraction * len(group))])


def part(patients: Mapping[str, int], index: int, count: int) -> frozenset[str]:
    """Part ``index`` (1..count) of patients dealt into disjoint parts with like shares of each label.

    Only for public data whose list of patients is fixed, as ``held_out`` is, to simulate hospitals.
    Raises UsageError for an index out of range, or more parts than patients.
    """
    if not 1 <= index <= count:
        raise UsageError(f"there is no part {index} of {count}")
    if count > len(patients):
        raise UsageError(f"cannot split {len(patients)} patients into {count} parts")
    ordered = [patient for group in _shuffled(patients, 0, "part").values() for patient in group]
    # Dealt like cards, label after label: sizes differ by at most one, and so do the labels' shares.
    return frozenset(ordered[index - 1 :: count])


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction < 1:
        raise UsageError(f"a test fraction of {fraction} leaves one side empty")
