"""Addition of ciphertexts: modulo q, exactly, one chunk at a time."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cipherward.crypto.quorum.params import DEGREE, SETS, parameters
from cipherward.crypto.suites.registry import suite
from cipherward.errors import FormatError, LimitError

SUITE = suite("quorum")
NAMES = list(SETS)


def chunk(params, elements, rng):
    return rng.integers(0, params.modulus, elements * DEGREE, dtype=np.uint64).astype(params.residue)


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    count=st.integers(1, 12),
    elements=st.sampled_from([1, 2, 5, 32]),
    seed=st.integers(0, 2**32 - 1),
)
def test_sums_are_exact_modulo_q(name, count, elements, seed):
    params = parameters(name, None, 16)
    rng = np.random.default_rng(seed)
    chunks = [chunk(params, elements, rng) for _ in range(count)]
    with SUITE.chunk_adder(params) as adder:
        total = adder.add((one.tobytes() for one in chunks), 0, elements * DEGREE)
        again = adder.add([one.tobytes() for one in reversed(chunks)], 0, elements * DEGREE)
    expected = np.sum(chunks, axis=0, dtype=np.uint64) % params.modulus
    np.testing.assert_array_equal(np.frombuffer(total, dtype=params.residue), expected)
    assert again == total
    params.check_sum_chunk(total, 0, elements * DEGREE)


@pytest.mark.parametrize(("name", "sites"), [("q32", 1000), ("q16", 28)])
def test_the_largest_residues_of_the_most_sites(name, sites):
    params = parameters(name, 1.0, sites)
    rng = np.random.default_rng(1)
    # Highest, lowest, and both in one pair of words.
    values = np.zeros(DEGREE, dtype=params.residue)
    values[: DEGREE // 2] = params.modulus - 1
    values[-100:] = (params.modulus - 1) * rng.integers(0, 2, 100)
    with SUITE.chunk_adder(params) as adder:
        total = adder.add((values.tobytes() for _ in range(sites)), 0, DEGREE)
        expected = values.astype(np.uint64) * sites % params.modulus
        np.testing.assert_array_equal(np.frombuffer(total, dtype=params.residue), expected)
        with pytest.raises(LimitError, match="too many"):
            adder.add((values.tobytes() for _ in range(sites + 1)), 0, DEGREE)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_refused(name):
    params = parameters(name, None, 4)
    rng = np.random.default_rng(2)
    good = chunk(params, 2, rng)
    high = good.copy()
    high[-1] = params.modulus
    with SUITE.chunk_adder(params) as adder:
        with pytest.raises(LimitError, match="no contributors"):
            adder.add([], 0, 2 * DEGREE)
        with pytest.raises(FormatError, match="not below the modulus"):
            adder.add([good.tobytes(), high.tobytes()], 0, 2 * DEGREE)
        for bad in (good[:-1], good[:DEGREE], np.append(good, good), good[:0]):
            with pytest.raises(FormatError, match="bytes"):
                adder.add([good.tobytes(), bad.tobytes()], 0, 2 * DEGREE)
        with pytest.raises(LimitError, match="no chunk 2"):
            adder.add([good.tobytes()], 2, 2 * DEGREE)
        # Nothing of a refused sum is left in the next one.
        assert adder.add([good.tobytes()], 0, 2 * DEGREE) == good.tobytes()


def test_memory_does_not_grow_with_the_sites():
    params = parameters("q32", 1.0, 400)
    one = chunk(params, 32, np.random.default_rng(3)).tobytes()

    def peak(sites):
        with SUITE.chunk_adder(params) as adder:
            tracemalloc.start()
            adder.add((bytes(bytearray(one)) for _ in range(sites)), 0, 65_536)
            most = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return most

    assert peak(200) < peak(2) + 50_000
