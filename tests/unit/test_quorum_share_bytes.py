"""Shares and answers as bytes, and what is refused before anything is computed with them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from cipherward.crypto.quorum.decoding import PRIME
from cipherward.crypto.quorum.shamir import COEFFICIENTS, SHARE_BYTES, add_shares, candidates, parse_share
from cipherward.errors import FormatError, UsageError


def share(values: Sequence[int] | NDArray[np.integer]) -> bytes:
    return np.asarray(values).astype("<u4").tobytes()


@pytest.mark.parametrize("size", [0, 1, SHARE_BYTES - 4, SHARE_BYTES - 1, SHARE_BYTES + 1, 2 * SHARE_BYTES])
def test_shares_of_another_size_are_refused(size: int) -> None:
    with pytest.raises(FormatError, match="bytes"):
        parse_share(bytes(size))


@pytest.mark.parametrize("value", [PRIME, PRIME + 1, 2**32 - 1])
@pytest.mark.parametrize("place", [0, 1000, COEFFICIENTS - 1])
def test_values_that_are_not_residues_are_refused(value: int, place: int) -> None:
    values = np.zeros(COEFFICIENTS, dtype=np.uint32)
    values[place] = PRIME - 1
    parse_share(share(values))
    values[place] = value
    for use in (parse_share, lambda bad: add_shares([bad]), lambda bad: candidates({1: bad}, 1, 1)):
        with pytest.raises(FormatError, match="not a residue"):
            use(share(values))


def test_sums_are_reduced() -> None:
    top = share(np.full(COEFFICIENTS, PRIME - 1))
    assert set(parse_share(add_shares([top] * 1000)).tolist()) == {PRIME - 1000}
    assert add_shares([top, share(np.ones(COEFFICIENTS))]) == bytes(SHARE_BYTES)
    for dealers in (0, 1001):
        with pytest.raises(UsageError, match="dealers"):
            add_shares([top] * dealers)


@pytest.mark.parametrize("point", [0, -1, 1001])
def test_points_out_of_range_are_refused(point: int) -> None:
    with pytest.raises(UsageError, match="points"):
        candidates({point: bytes(SHARE_BYTES), 1: bytes(SHARE_BYTES)}, 1, 1)


@pytest.mark.parametrize(("threshold", "bound"), [(0, 1), (1001, 1), (1, -1), (1, PRIME)])
def test_limits_out_of_range_are_refused(threshold: int, bound: int) -> None:
    with pytest.raises(UsageError, match="out of range"):
        candidates({1: bytes(SHARE_BYTES)}, threshold, bound)
