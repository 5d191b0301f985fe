"""How a rule on a manifest is stated: one line, and a VerificationError that names the rule if it does not hold."""

from __future__ import annotations

import math
from collections.abc import Iterable

from cipherward.errors import VerificationError

SMALLEST, LARGEST = 1e-6, 1e9
"""Of every constant that must be positive."""


def need(condition: bool, what: str, why: str = "") -> None:
    """Raises VerificationError unless ``condition``."""
    if not condition:
        raise VerificationError(what, why=why)


def positive(value: float, what: str) -> None:
    """Raises VerificationError unless SMALLEST <= value <= LARGEST."""
    # Not the whole range of a float: near its ends, rounding would break the bounds that privacy rests on.
    need(
        math.isfinite(value) and SMALLEST <= value <= LARGEST,
        f"{what} is {value:g}",
        f"it must lie between {SMALLEST:g} and {LARGEST:g}",
    )


def within(value: float, low: float, high: float, what: str) -> None:
    """Raises VerificationError unless low <= value <= high."""
    need(low <= value <= high, f"{what} is {value:g}", f"it must be {low:g} to {high:g}")


def unique(values: Iterable[object], what: str) -> None:
    """Raises VerificationError if two are equal."""
    listed = list(values)
    need(len(set(listed)) == len(listed), f"{what} occurs twice in the manifest")
