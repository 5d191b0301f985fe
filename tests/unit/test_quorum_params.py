"""The named sets: scale, zero elements, sizes, error bound; what leaves no precision or could overflow is refused."""

import math
from dataclasses import FrozenInstanceError
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cipherward.crypto.quorum.params import DEGREE, SETS, own_params, parameters
from cipherward.crypto.suites.registry import suite
from cipherward.errors import CipherwardError, FormatError, LimitError, UsageError

SUITE = suite("quorum")
NAMES = list(SETS)


def made(name, bound, sites):
    """The parameters, or None if there is no precision left."""
    try:
        return parameters(name, bound, sites)
    except UsageError as error:
        assert "no room" in error.what
        return None


@given(
    name=st.sampled_from(NAMES),
    bound=st.floats(1, 1e6) | st.sampled_from([1.0, 64.0, 1031.9, 1032.1]),
    sites=st.integers(1, 1000),
)
def test_no_sum_can_overflow_and_the_scale_is_the_largest_that_allows_it(name, bound, sites):
    params = made(name, bound, sites)
    assume(params is not None)

    def largest(scale):
        return sites * (Fraction(bound) * scale + Fraction(1, 2) + 32)

    assert params.scale == 2 ** round(math.log2(params.scale))
    assert largest(params.scale) < Fraction(params.modulus, 2) * Fraction(63, 64) + 1
    assert largest(2 * params.scale) > Fraction(params.modulus, 2) * Fraction(63, 64)
    assert params.error_bound(sites) < 0.5


@given(name=st.sampled_from(NAMES), bound=st.floats(1, 1e6), sites=st.integers(1, 1000))
def test_only_useless_precision_is_refused(name, bound, sites):
    assume(made(name, bound, sites) is None)
    modulus = SETS[name].modulus
    finest = 2.0 ** math.floor(math.log2(max(modulus / 2 / sites / bound, 2.0**-40)))
    # With the next power of two the sum would not fit, or this one's error reaches the check constant.
    fits = sites * (bound * finest + 32.5) < modulus / 2 * 63 / 64
    coarse = finest if fits else finest / 2
    assert 8 * math.sqrt(sites * (16 + 1 / 12)) / coarse >= 0.5


@given(name=st.sampled_from(NAMES), sites=st.integers(1, 1000))
def test_zero_elements_are_the_fewest_that_let_no_wrong_key_pass(name, sites):
    params = made(name, 1.0, sites)
    assume(params is not None)
    q, b = params.modulus, math.ceil(32 * math.sqrt(sites))
    assert params.zero_bound(sites) == b

    def passes(z):
        return (128 * sites + 1) * (4 * b + 1) ** z < Fraction(q**z, 2)

    assert passes(params.zero_elements)
    assert params.zero_elements == 1 or not passes(params.zero_elements - 1)


def test_the_factor_of_a_half_counts():
    """At two sites one element would let a wrong key pass with a chance above 2^-N, if only just."""
    b, q = 46, SETS["q16"].modulus
    assert q / 2 < (128 * 2 + 1) * (4 * b + 1) < q
    assert parameters("q16", 1.0, 2).zero_elements == 2


def test_the_defaults():
    q32, q16 = (SUITE.parameter_sets[name] for name in NAMES)
    assert (q32.name, q32.bound, q32.max_sites, q32.scale, q32.zero_elements) == ("q32", 64.0, 1000, 2**15, 1)
    assert (q16.name, q16.bound, q16.max_sites, q16.scale, q16.zero_elements) == ("q16", 1.0, 16, 2**10, 2)
    for params in (q32, q16):
        assert params.suite == "quorum"
        assert params.library == "cipherward-quorum 1"
        assert params.values_per_chunk == 65_536
        assert "core-SVP" in params.justification
        assert params.error_bound(params.max_sites) < 0.5
        with pytest.raises(FrozenInstanceError):
            params.bound = 1.0


def test_fewer_sites_are_encoded_more_finely():
    scales = [parameters("q32", 64.0, sites).scale for sites in (2, 10, 100, 1000)]
    assert scales == sorted(scales, reverse=True)
    assert scales[0] > 100 * scales[-1]
    assert parameters("q32", 64.0, 10) == SUITE.parameters("q32", 64.0, 10)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("q31",), "no parameter set 'q31'"),
        (("q32-1024", 64.0, 4), "no parameter set"),
        (("q32", 0.5, 4), "bound 0.5"),
        (("q32", math.nan, 4), "bound nan"),
        (("q32", math.inf, 4), "bound inf"),
        (("q32", 64.0, 0), "0 sites"),
        (("q32", 64.0, 1001), "1001 sites"),
        (("q32", 1e6, 1000), "Use a bound of at most 1031.92"),
        (("q16", 64.0, 4), "Use a bound of at most 29.4"),
        (("q16", 1.0, 1000), "Use fewer sites, or the parameter set q32"),
    ],
)
def test_refused_parameters(arguments, words):
    with pytest.raises(UsageError) as caught:
        SUITE.parameters(*arguments)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_bound_that_a_refusal_names_works():
    assert parameters("q32", 1031.92, 1000).error_bound(1000) < 0.5
    assert parameters("q16", 29.4, 4).error_bound(4) < 0.5


@pytest.mark.parametrize(
    ("length", "elements"),
    [(1, [1]), (2048, [1]), (2049, [2]), (65_536, [32]), (65_537, [32, 1]), (200_000, [32, 32, 32, 2])],
)
@pytest.mark.parametrize("name", NAMES)
def test_chunks_hold_whole_elements_and_the_zero_chunk_comes_last(name, length, elements):
    params = parameters(name)
    width = params.residue.itemsize
    expected = [2048 * width * count for count in [*elements, params.zero_elements]]
    assert params.chunk_count(length) == len(expected)
    assert [params.upload_chunk_bytes(i, length) for i in range(len(expected))] == expected
    assert [params.sum_chunk_bytes(i, length) for i in range(len(expected))] == expected
    assert sum(params.values_in(i, length) for i in range(len(expected))) == length
    for index in (-1, len(expected)):
        with pytest.raises(LimitError, match="no chunk"):
            params.upload_chunk_bytes(index, length)


def test_limits_on_lengths_and_sites():
    params = parameters("q32", 64.0, 10)
    assert params.chunk_count(2**32) == 2**16 + 1
    for length in (0, -1, 2**32 + 1):
        with pytest.raises(LimitError):
            params.chunk_count(length)
    params.check_sites(10)
    for refused in (
        lambda: params.check_sites(11),
        lambda: params.error_bound(11),
        lambda: params.error_bound(0),
    ):
        with pytest.raises(LimitError):
            refused()


@pytest.mark.parametrize("name", NAMES)
def test_structure_of_chunks(name):
    params = parameters(name)
    length, kind = 3000, params.residue
    good = np.full(2 * DEGREE, params.modulus - 1, dtype=kind)
    high = good.copy()
    high[77] = params.modulus
    top = good.copy()
    top[-1] = np.iinfo(kind).max
    for check in (params.check_upload_chunk, params.check_sum_chunk):
        check(good.tobytes(), 0, length)
        check(np.zeros(params.zero_elements * DEGREE, dtype=kind).tobytes(), 1, length)
        for bad, words in (
            (high, "residue 77 is not below"),
            (top, "residue 4095 is not below"),
            (good[:-1], "must have"),
            (good[:DEGREE], "must have"),
            (np.append(good, good), "must have"),
        ):
            with pytest.raises(FormatError, match=words):
                check(bad.tobytes(), 0, length)
        for index in (2, -1):
            with pytest.raises(LimitError):
                check(good.tobytes(), index, length)


def test_only_this_suite_s_parameters():
    params = parameters("q32")
    assert own_params(params) is params
    with pytest.raises(UsageError, match="of the suite shared-key, not quorum"):
        own_params(suite("shared-key").parameters("seal-4096-48"))


def test_every_refusal_is_one_of_ours():
    for name, bound, sites in (("q16", 1e300, 1000), ("q32", 1e300, 1), ("q16", 1e15, 945)):
        with pytest.raises(CipherwardError):
            parameters(name, bound, sites)
