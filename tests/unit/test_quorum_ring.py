"""Products in the ring are exact: against integer arithmetic, at the largest inputs, with numpy and torch."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cipherward.crypto.quorum import ring
from cipherward.crypto.quorum.params import DEGREE, SETS
from cipherward.crypto.quorum.ring import Multiplier, fold, product_error, reduce, unfold
from cipherward.errors import LimitError

Q32, Q16 = SETS["q32"].modulus, SETS["q16"].modulus


def schoolbook(a, s, modulus):
    """a s modulo X^N + 1 and q, centred, by integers: at most 2048 * 2^31 * 32,000 < 2^57."""
    full = np.zeros(2 * DEGREE, dtype=np.int64)
    full[:-1] = np.convolve(a.astype(np.int64), s.astype(np.int64))
    return centred(full[:DEGREE] - full[DEGREE:], modulus)


def centred(values, modulus):
    return (values + modulus // 2) % modulus - modulus // 2


def product(a, s, modulus, xp=np):
    """As the suite does it; ``a`` of shape (rows, N) or (N,), natural order."""
    rows = np.atleast_2d(fold(a).astype(np.int32 if modulus == Q32 else np.int16))
    multiplier = Multiplier(fold(s).astype(np.int64), modulus, xp)
    out = multiplier.multiply(xp.asarray(rows), multiplier.scratch(len(rows) + 1))
    return unfold(centred(np.asarray(out).astype(np.int64), modulus)).reshape(a.shape)


def extremes(modulus, rng):
    half = (modulus - 1) // 2
    signs = rng.choice([-1, 1], (2, DEGREE))
    return [
        np.full(DEGREE, half),
        np.full(DEGREE, -half),
        np.full(DEGREE, half - 12_345),  # both limbs large: the product does not fit a double unreduced
        half * signs[0],
        np.where(np.arange(DEGREE) % 2, half, -half),
        # Halves of limbs: 2^15 and 2^15 - 1 in the lower 16 bits.
        (np.full(DEGREE, half) & ~0xFFFF) + 0x8000 if modulus == Q32 else half - signs[1],
        (np.full(DEGREE, half) & ~0xFFFF) - 0x8000 if modulus == Q32 else half * signs[1],
        rng.integers(-half, half + 1, DEGREE),
    ]


def keys(rng):
    return {
        "fresh": np.bitwise_count(rng.integers(0, 2**64, DEGREE, dtype=np.uint64)).astype(np.int64) - 32,
        "all 32000": np.full(DEGREE, 32_000),
        "all odd": np.full(DEGREE, 31_999),
        "signs 32000": 32_000 * rng.choice([-1, 1], DEGREE),
        "one": np.eye(1, DEGREE, 0, dtype=np.int64)[0],
        "last": -32 * np.eye(1, DEGREE, DEGREE - 1, dtype=np.int64)[0],
    }


@pytest.mark.parametrize("modulus", [Q32, Q16])
@pytest.mark.parametrize("key", list(keys(np.random.default_rng(0))))
def test_exact_at_the_largest_inputs(modulus, key):
    rng = np.random.default_rng(modulus)
    s = keys(rng)[key]
    for a in extremes(modulus, rng):
        np.testing.assert_array_equal(product(a, s, modulus), schoolbook(a, s, modulus))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    modulus=st.sampled_from([Q32, Q16]),
    most=st.sampled_from([1, 7, 32, 320, 32_000]),
    rows=st.integers(1, 3),
)
def test_exact_for_any_polynomials(seed, modulus, most, rows):
    rng = np.random.default_rng(seed)
    a = rng.integers(-(modulus // 2), modulus // 2 + 1, (rows, DEGREE))
    s = rng.integers(-most, most + 1, DEGREE)
    expected = np.array([schoolbook(row, s, modulus) for row in a])
    np.testing.assert_array_equal(product(a, s, modulus), expected)
    np.testing.assert_array_equal(product(a, s, modulus, torch), expected)


def test_the_ring_is_negacyclic():
    x = np.eye(1, DEGREE, 1, dtype=np.int64)[0]
    power = np.eye(1, DEGREE, DEGREE - 1, dtype=np.int64)[0]
    assert product(power, x, Q32).tolist() == [-1] + [0] * (DEGREE - 1)


@pytest.mark.parametrize("limbs", [1, 2])
def test_errors_before_rounding_are_far_below_the_bound(limbs, monkeypatch):
    """The bound is a worst case; what happens is a hundred times smaller. With neither would rounding be sure."""
    worst = 0.0

    class Watching:
        """numpy, with a look at what is about to be rounded."""

        def __getattr__(self, name):
            return getattr(np, name)

        @staticmethod
        def round(values, out):
            nonlocal worst
            if values.shape[0] == 2 * limbs:
                worst = max(worst, float(np.abs(values - np.rint(values)).max()))
            return np.round(values, out=out)

    rng = np.random.default_rng(limbs)
    s = keys(rng)["fresh" if limbs == 1 else "signs 32000"]
    multiplier = Multiplier(fold(s).astype(np.int64), Q32, Watching())
    assert multiplier.limbs == limbs
    half = (Q32 - 1) // 2
    for _ in range(20):
        a = np.stack([half * rng.choice([-1, 1], DEGREE), rng.integers(-half, half + 1, DEGREE)])
        multiplier.multiply(a.astype(np.int32), multiplier.scratch(2))
    largest = np.sqrt(DEGREE) * (0.7 * half if limbs == 1 else 2**15)
    bound = product_error(float(np.linalg.norm(s)), largest)
    assert 0 < 20 * worst < bound < 0.4


def test_as_many_limbs_as_the_key_needs():
    rng = np.random.default_rng(5)
    fresh = keys(rng)["fresh"]
    assert Multiplier(fresh, Q32).limbs == 1
    assert Multiplier(16 * fresh, Q32).limbs == 2
    assert Multiplier(np.full(DEGREE, 32_000), Q32).limbs == 2
    assert Multiplier(np.full(DEGREE, 32_000), Q16).limbs == 1
    with pytest.raises(LimitError, match="too large"):
        Multiplier(np.full(DEGREE, 300_000), Q32)


def test_a_fresh_key_never_needs_two_limbs():
    """212 = 0.4 / (250 eps 6.8e10) is 11.9 standard deviations of |s|^2 above its mean, 2048 * 16."""
    largest = 0.4 / product_error(1.0, 0.7 * np.sqrt(DEGREE) * Q32 / 2)
    fourth = 3 * 16**2 - 16**2 / 32  # of 64 fair coins: kurtosis 3 - 2/64
    assert largest**2 > DEGREE * 16 + 11 * np.sqrt(DEGREE * (fourth - 16**2))


def test_torch_gives_the_same_integers():
    rng = np.random.default_rng(9)
    for name, s in keys(rng).items():
        a = rng.integers(-(Q32 // 2), Q32 // 2 + 1, (4, DEGREE)).astype(np.int32)
        by_numpy, by_torch = Multiplier(s, Q32), Multiplier(s, Q32, torch)
        first = by_numpy.multiply(a, by_numpy.scratch(4))
        second = by_torch.multiply(torch.from_numpy(a), by_torch.scratch(4))
        for values, xp in ((first, np), (second, torch)):
            reduce(values, xp.empty_like(values), Q32, xp)
        np.testing.assert_array_equal(first, second.numpy(), err_msg=name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("key", list(keys(np.random.default_rng(0))))
def test_cuda_gives_the_same_integers(key):
    rng = np.random.default_rng(10)
    s = keys(rng)[key]
    a = np.array([one.astype(np.int32) for one in extremes(Q32, rng)])
    on_device = Multiplier(fold(s).astype(np.int64), Q32, torch, "cuda")
    got = on_device.multiply(torch.from_numpy(fold(a)).cuda(), on_device.scratch(len(a)))
    expected = np.array([schoolbook(row, s, Q32) for row in a])
    np.testing.assert_array_equal(unfold(centred(got.cpu().numpy().astype(np.int64), Q32)), expected)


@given(st.data())
@pytest.mark.parametrize("modulus", [Q32, Q16])
def test_reduction_is_exact_around_multiples_and_halves(modulus, data):
    most = 2**48 // modulus
    quotient = data.draw(st.integers(-most + 1, most - 1))
    near = data.draw(st.sampled_from([0, (modulus - 1) // 2, -(modulus - 1) // 2]))
    offset = data.draw(st.integers(-3, 3))
    value = quotient * modulus + near + offset
    values = np.array([[float(value)]])
    reduce(values, np.empty_like(values), modulus)
    assert values[0, 0] == (value + modulus // 2) % modulus - modulus // 2


def test_folding_pairs_the_halves():
    natural = np.arange(2 * DEGREE).reshape(2, DEGREE)
    assert fold(natural)[0, :4].tolist() == [0, 1024, 1, 1025]
    np.testing.assert_array_equal(unfold(fold(natural)), natural)


def test_a_secret_polynomial_stays():
    multiplier = Multiplier(np.ones(DEGREE, dtype=np.int64), Q32)
    assert repr(multiplier) == "Multiplier(OMITTED)"
    for leave in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            leave(multiplier)
    assert ring.HALF * 2 == DEGREE
