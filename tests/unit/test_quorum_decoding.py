"""Arithmetic modulo p = 2**31 - 1 at its limits, and decoding against trying every polynomial."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cipherward.crypto.quorum import decoding
from cipherward.crypto.quorum.decoding import PRIME

SEEDS = st.integers(0, 2**32 - 1)


def lagrange_weight(base: Sequence[int], point: int, target: int) -> int:
    weight = 1
    for other in base:
        if other != point:
            weight = weight * (target - other) * pow(point - other, -1, PRIME) % PRIME
    return weight


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1))
def test_reduction_is_exact(values: list[int]) -> None:
    edges = [0, PRIME - 1, PRIME, PRIME + 1, 2 * PRIME, 2**62, PRIME**2, (2**33 + 1) * PRIME, 2**64 - 1]
    everything = np.array(values + edges, dtype=np.uint64)
    assert decoding.reduced(everything).tolist() == [value % PRIME for value in values + edges]


def test_products_are_exact_at_their_limits() -> None:
    """The most terms of the largest values, and a row block's edge."""
    worst = np.full((2, decoding.MAX_TERMS), PRIME - 1, dtype=np.uint64)
    assert set(decoding.product(worst, worst.T).ravel().tolist()) == {decoding.MAX_TERMS}
    low = np.full((1, decoding.MAX_TERMS), PRIME - 2048, dtype=np.uint64)  # the lowest limb is full, too
    assert set(decoding.product(low, worst.T).ravel().tolist()) == {2048 * decoding.MAX_TERMS}
    # With limbs one bit wider this sum would be odd and above 2**53.
    odd = np.full((1, decoding.MAX_TERMS - 1), PRIME - 4096, dtype=np.uint64)
    right = np.full((decoding.MAX_TERMS - 1, 1), PRIME - 2, dtype=np.uint32)
    assert decoding.product(odd, right).tolist() == [[4096 * 2 * (decoding.MAX_TERMS - 1)]]
    rng = np.random.default_rng(11)
    left, right = (
        rng.integers(0, PRIME, (129, 7), dtype=np.uint64),
        rng.integers(0, PRIME, (7, 3), dtype=np.uint32),
    )
    assert (
        decoding.product(left, right).tolist()
        == (left.astype(object) @ right.astype(object) % PRIME).tolist()
    )


def nearest(points: list[int], word: list[int], dimension: int) -> list[bool] | None:
    """By trying every polynomial through ``dimension`` of the values."""
    radius = (len(points) - dimension) // 2
    for base in combinations(range(len(points)), dimension):
        chosen = [points[i] for i in base]
        values = [sum(lagrange_weight(chosen, points[i], x) * word[i] for i in base) % PRIME for x in points]
        wrong = [value != got for value, got in zip(values, word, strict=True)]
        if sum(wrong) <= radius:
            return wrong
    return None


@given(st.data(), st.integers(1, 7), st.integers(1, 4), SEEDS)
@settings(max_examples=200)
def test_decoding_agrees_with_trying_everything(
    data: st.DataObject, length: int, dimension: int, seed: int
) -> None:
    """Also far from the code, and half way between two codewords."""
    dimension = min(dimension, length)
    rng = np.random.default_rng(seed)
    points = sorted(int(x) for x in rng.choice(1000, length, replace=False) + 1)
    polynomials = [[int(c) for c in rng.integers(0, 3, dimension)] for _ in range(3)]
    sources = data.draw(st.lists(st.integers(0, 3), min_size=length, max_size=length))
    word = [
        int(rng.integers(PRIME))
        if source == 3
        else sum(c * x**k for k, c in enumerate(polynomials[source])) % PRIME
        for x, source in zip(points, sources, strict=True)
    ]
    found = decoding.wrong_positions(np.array(points), np.array(word, dtype=np.uint64), dimension)
    assert (None if found is None else found.tolist()) == nearest(points, word, dimension)
