"""Public polynomials are what the wire format says, uniform; keys and errors are centred binomials."""

import hashlib
import math

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cipherward.crypto.labels import Label, framed
from cipherward.crypto.quorum.params import DEGREE, parameters
from cipherward.crypto.quorum.sampling import PublicPolynomials, binomial, binomial_key, start_of
from cipherward.crypto.randomness import KeyStream

SETS = ["q32", "q16"]


def take(params, chunks, bounds, context=b"plan"):
    """Coefficients of some chunks, int64 of shape (elements, N)."""
    words = np.empty((bounds[-1], DEGREE), dtype=params.residue)
    found = PublicPolynomials(params, context).take(chunks, bounds, words, np.empty_like(words))
    assert np.shares_memory(found, words)
    return found.astype(np.int64)


def keystream(key, block, count):
    cipher = Cipher(algorithms.AES(key), modes.CTR(block.to_bytes(16, "big"))).encryptor()
    return cipher.update(bytes(count))


def by_the_book(params, chunk, elements, context=b"plan"):
    """The format's words in Python's integers."""
    key = hashlib.sha256(framed(Label.PUBLIC_POLYNOMIAL, context)).digest()
    width, most = params.residue.itemsize, (params.modulus - 1) // 2

    def words(block, count):
        stream = keystream(key, block, width * count)
        return [
            int.from_bytes(stream[i : i + width], "little", signed=True) for i in range(0, len(stream), width)
        ]

    spares = (word for word in words(chunk * 2**32 + 2**31, 20_000) if abs(word) <= most)
    candidates = words(chunk * 2**32, elements * DEGREE)
    return [word if abs(word) <= most else next(spares) for word in candidates]


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("chunk", [0, 1, 70_000])
def test_they_follow_the_format(name, chunk):
    params = parameters(name)
    got = take(params, [chunk], [0, 32])
    assert got.reshape(-1).tolist() == by_the_book(params, chunk, 32)


@settings(max_examples=20, deadline=None)
@given(name=st.sampled_from(SETS), sizes=st.lists(st.integers(1, 32), min_size=1, max_size=4))
def test_chunks_are_the_same_alone_together_and_cut_short(name, sizes):
    params = parameters(name)
    bounds = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    together = take(params, range(5, 5 + len(sizes)), bounds)
    for i, size in enumerate(sizes):
        np.testing.assert_array_equal(
            together[bounds[i] : bounds[i + 1]], take(params, [5 + i], [0, 32])[:size]
        )


@pytest.mark.parametrize("name", SETS)
def test_plans_and_chunks_have_their_own(name):
    params = parameters(name)
    first = take(params, [0], [0, 2])
    for other in (take(params, [1], [0, 2]), take(params, [0], [0, 2], b"other plan")):
        assert np.count_nonzero(first == other) < 10


@pytest.mark.parametrize("name", SETS)
def test_they_are_uniform_modulo_q(name):
    params = parameters(name)
    half = (params.modulus - 1) // 2
    values = take(params, range(16), range(0, 513, 32)).reshape(-1)
    assert -half <= values.min() < -half * 0.999
    assert half * 0.999 < values.max() <= half
    counts, _ = np.histogram(values, bins=256, range=(-half - 0.5, half + 0.5))
    assert stats.chisquare(counts).pvalue > 1e-6


def test_the_least_word_is_rejected():
    """Its absolute value overflows: -2^31 would pass as negative, and it is not a residue."""

    for name in SETS:
        params = parameters(name)
        words = np.empty((1, DEGREE), dtype=params.residue)
        source = PublicPolynomials(params, b"")
        source._stream = Least()
        assert (source.take([0], [0, 1], words, np.empty_like(words)) == 7).all()


class Least:
    """A keystream whose candidates are all the least word, and whose spares are all 7."""

    def seek(self, block):
        self.spare = block != 0

    def fill(self, words):
        words[...] = 7 if self.spare else 1 << (8 * words.itemsize - 1)


def coins(key, count):
    words, out = np.empty(count, dtype=np.uint64), np.empty(count, dtype=np.int8)
    KeyStream(key).fill(words)
    binomial(words, out)
    return out


def test_noise_is_the_centred_binomial_of_64_coins():
    values = coins(bytes(range(32)), 1_000_000)
    exact = np.array([math.comb(64, 32 + k) for k in range(-32, 33)], dtype=np.float64) / 2.0**64
    inner = slice(32 - 18, 32 + 19)  # |k| <= 18 is expected at least 5 times
    counts = np.bincount(values.astype(np.int64) + 32, minlength=65)
    observed = np.append(counts[inner], 1_000_000 - counts[inner].sum())
    expected = 1_000_000 * np.append(exact[inner], 1 - exact[inner].sum())
    assert stats.chisquare(observed, expected).pvalue > 1e-6
    assert np.abs(values).max() <= 32


def test_noise_is_not_correlated():
    values = coins(b"\x07" * 32, 1 << 20).astype(np.float64)
    for lag in (1, 2, 1024, 2048, 65_536):
        correlation = float(values[:-lag] @ values[lag:]) / (16 * (len(values) - lag))
        assert abs(correlation) < 6 / math.sqrt(len(values)), lag


def test_every_coin_counts():
    """64 ones make 32, 64 zeros -32, one of them -31; it is popcount(low) - popcount(not high)."""

    words = np.array([2**64 - 1, 0, 1, 2**63, 2**32 - 1], dtype=np.uint64)
    out = np.empty(5, dtype=np.int8)
    binomial(words, out)
    assert out.tolist() == [32, -32, -31, -31, 0]


def test_a_key_is_a_polynomial_of_coins():
    key = binomial_key(KeyStream(bytes(32)))
    assert key.shape == (DEGREE,)
    assert key.dtype == np.int64
    np.testing.assert_array_equal(key, coins(bytes(32), DEGREE))


def test_parts_of_streams_do_not_meet():
    """A chunk takes 2^15 blocks of coins, or 2^14 of candidates; a plan has at most 2^16 + 1 chunks."""
    params = parameters("q32")
    assert start_of(1) - start_of(0) == 2**32
    assert params.values_per_chunk * 8 // 16 <= 2**31
    assert start_of(2**16 + 1) < 2**128
