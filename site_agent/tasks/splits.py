"""Splitting patients: fixed by a seed and the ids alone, so that the same patients are held out on every run
and every machine, whatever the order of the file or the version of a random generator."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from cipherward.errors import UsageError


def _shuffled(patients: Mapping[str, int], seed: int, purpose: str) -> dict[int, list[str]]:
    """Patients by label, each list in an order that depends on seed, purpose and ids only."""

    def key(patient: str) -> bytes:
        return hashlib.sha256(f"{purpose}/{seed}/{patient}".encode()).digest()

    by_label: dict[int, list[str]] = {}
    for patient in sorted(patients, key=key):
        by_label.setdefault(patients[patient], []).append(patient)
    return by_label


def held_out(patients: Mapping[str, int], fraction: float, seed: int = 0) -> frozenset[str]:
    """The test patients: ``fraction`` of each label's, rounded. ``patients`` maps id to label.

    Raises UsageError for a fraction outside (0, 1).
    """
    if not 0 < fraction < 1:
        raise UsageError(f"a test fraction of {fraction} leaves one side empty")
    groups = _shuffled(patients, seed, "test").values()
    return frozenset(patient for group in groups for patient in group[: round(fraction * len(group))])


def part(patients: Mapping[str, int], index: int, count: int) -> frozenset[str]:
    """Part ``index`` (1..count) of patients dealt into disjoint parts with like shares of each label.

    Raises UsageError for an index out of range, or more parts than patients.
    """
    if not 1 <= index <= count:
        raise UsageError(f"there is no part {index} of {count}")
    if count > len(patients):
        raise UsageError(f"cannot split {len(patients)} patients into {count} parts")
    ordered = [patient for group in _shuffled(patients, 0, "part").values() for patient in group]
    # Dealt like cards, label after label: sizes differ by at most one, and so do the labels' shares.
    return frozenset(ordered[index - 1 :: count])
