"""The update vector: what goes in, what is refused, and what a sum must show."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cipherward.crypto.shared_key.params import SEAL_4096_48
from cipherward.crypto.suites.payload import Layout, build, split
from cipherward.errors import FormatError, LimitError, UsageError, VerificationError

LAYOUT = Layout(parameters=3, metrics=2)
finite = st.floats(-(2**100), 2**100, width=32)


@given(
    update=hnp.arrays(np.float32, 3, elements=finite),
    metrics=hnp.arrays(np.float64, 2, elements=st.floats(-1e300, 1e300)),
    bound=st.floats(1, 1e6),
)
def test_built_vectors_are_finite_within_the_bound_and_end_in_one(update, metrics, bound):
    before = update.copy()
    vector = build(LAYOUT, update, metrics, bound)
    assert vector.dtype == np.float32
    assert vector.shape == (LAYOUT.length,) == (6,)
    assert np.isfinite(vector).all()
    assert float(np.abs(vector).max()) <= bound
    assert vector[-1] == 1.0
    inside = np.abs(update.astype(np.float64)) <= np.nextafter(np.float32(bound), np.float32(0))
    assert (vector[:3][inside] == update[inside]).all()
    assert (update == before).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["update", "metrics"])
def test_what_is_not_finite_is_refused_and_counted(bad, where):
    update, metrics = np.zeros(3, np.float32), np.zeros(2)
    (update if where == "update" else metrics)[1] = bad
    with pytest.raises(LimitError, match=r"1 of \d values are not finite, the first at position 1"):
        build(LAYOUT, update, metrics, 4.0)


def test_other_shapes_and_bounds_are_refused():
    with pytest.raises(UsageError, match="3 parameters and 2 metrics"):
        build(LAYOUT, np.zeros(4, np.float32), [0, 0], 4.0)
    with pytest.raises(UsageError, match="3 parameters and 2 metrics"):
        build(LAYOUT, np.zeros(3, np.float32), [0], 4.0)
    for bound in (0.5, float("nan")):
        with pytest.raises(UsageError, match="too small"):
            build(LAYOUT, np.zeros(3, np.float32), [0, 0], bound)


def test_a_sum_is_split_where_it_was_joined():
    total = sum(
        build(LAYOUT, np.full(3, i, np.float32), [10 * i, 1], 64).astype(np.float64) for i in range(4)
    )
    opened = split(LAYOUT, total, 4, SEAL_4096_48)
    assert opened.update.tolist() == [6, 6, 6]
    assert opened.metrics.tolist() == [60, 4]


@pytest.mark.parametrize("constant", [1.0, 2.0, 3.0 - 1e-4, 3.0 + 1e-4, 4.0, 0.0, -3.0, np.nan, np.inf])
def test_another_constant_is_refused(constant):
    vector = np.array([0, 0, 0, 0, 0, constant])
    with pytest.raises(VerificationError, match="3 contributors make 3"):
        split(LAYOUT, vector, 3, SEAL_4096_48)


def test_the_tolerance_is_the_sets_error_bound():
    edge = SEAL_4096_48.error_bound(3)
    for sign in (-1, 1):
        split(LAYOUT, np.array([0, 0, 0, 0, 0, 3 + sign * 0.99 * edge]), 3, SEAL_4096_48)
        with pytest.raises(VerificationError):
            split(LAYOUT, np.array([0, 0, 0, 0, 0, 3 + sign * 1.01 * edge]), 3, SEAL_4096_48)


def test_a_sum_of_another_length_is_refused():
    with pytest.raises(FormatError, match="6 values"):
        split(LAYOUT, np.ones(5), 1, SEAL_4096_48)


def test_a_set_too_coarse_for_the_constant_is_refused():
    coarse = replace(SEAL_4096_48, scale_bits=11)
    assert 0.5 < coarse.error_bound(1) < 2
    with pytest.raises(UsageError, match="too coarse"):
        split(LAYOUT, np.ones(6), 1, coarse)
