"""The secret stream: right bytes, right distributions, and no way out of its process."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from cipherward.crypto.randomness import _CHUNK, KeyStream
from cipherward.errors import UsageError

KEY = bytes(range(32))


def test_known_answer() -> None:
    """AES-256 of a zero block under a zero key (NIST AESAVS, GFSbox/KeySbox base case)."""
    assert KeyStream(bytes(32)).bytes(16).hex() == "dc95c078a2408989ad48a21492842087"


def test_uniform_uses_the_high_53_bits() -> None:
    words = np.frombuffer(KeyStream(KEY).bytes(8 * 100), dtype="<u8")
    uniform = KeyStream(KEY).uniform53(100)
    assert [int(value * 2**53) for value in uniform] == [int(word) >> 11 for word in words]


def test_streams_differ_and_a_stream_goes_on() -> None:
    stream = KeyStream()
    first = stream.bytes(32)
    assert first != stream.bytes(32)
    assert first != KeyStream().bytes(32)


@given(st.integers(0, 300), st.integers(0, 300))
def test_bytes_do_not_depend_on_how_they_are_asked_for(a: int, b: int) -> None:
    stream = KeyStream(KEY)
    assert stream.bytes(a) + stream.bytes(b) == KeyStream(KEY).bytes(a + b)


@given(st.integers(0, 40), st.integers(0, 300), st.integers(0, 300))
def test_filling_an_array_takes_the_same_bytes_from_any_block_on(block: int, a: int, b: int) -> None:
    stream = KeyStream(KEY, block)
    first, second = np.empty(a, np.uint8), np.empty(b, np.uint8)
    stream.fill(first)
    stream.fill(second)
    assert KeyStream(KEY).bytes(16 * block + a + b)[16 * block :] == first.tobytes() + second.tobytes()


@given(st.lists(st.integers(0, 2**70), min_size=1, max_size=4), st.integers(0, 100))
def test_seeking_goes_on_as_a_new_stream_would(blocks: list[int], count: int) -> None:
    stream = KeyStream(KEY)
    for block in blocks:
        stream.seek(block)
        assert stream.bytes(count) == KeyStream(KEY, block).bytes(count)


def test_filling_a_large_array() -> None:
    words = np.empty((3, 150_000), dtype="<u8")
    KeyStream(KEY, 2**100).fill(words)
    assert words.tobytes() == KeyStream(KEY, 2**100).bytes(words.nbytes)


def test_uniform_is_uniform() -> None:
    values = KeyStream(KEY).uniform53(200_000)
    assert values.min() >= 0
    assert values.max() < 1
    assert stats.kstest(values, "uniform").pvalue > 1e-3


def test_gaussian_is_standard_normal() -> None:
    values = KeyStream(KEY).gaussian(400_000)
    assert stats.kstest(values, "norm").pvalue > 1e-3
    assert abs(values.std() - 1) < 4 / np.sqrt(2 * len(values))
    assert abs(stats.kurtosis(values)) < 4 * np.sqrt(24 / len(values))


def test_gaussian_deviates_are_uncorrelated() -> None:
    """The halves of a Box-Muller pair go to different deviates: neither they nor their squares may agree."""
    size = 100_000
    values = KeyStream(KEY).gaussian(size)
    for lag in (1, _CHUNK // 2, size // 2):
        for transform in (values, values**2):
            correlation = np.corrcoef(transform[:-lag], transform[lag:])[0, 1]
            assert abs(correlation) < 5 / np.sqrt(size - lag)


@pytest.mark.parametrize("count", [0, 1, 2, 3, _CHUNK - 1, _CHUNK, _CHUNK + 1])
def test_gaussian_gives_as_many_as_asked(count: int) -> None:
    values = KeyStream(KEY).gaussian(count)
    assert values.shape == (count,)
    assert values.dtype == np.float64
    assert np.isfinite(values).all()
    assert len(np.unique(values)) == count


def test_gaussian_survives_the_extreme_words() -> None:
    """All-ones words are the uniform nearest 1, all-zeros words 0: neither may give infinity."""

    class Extreme(KeyStream):
        __slots__ = ("words",)

        def fill(self, out: NDArray[Any]) -> None:
            out[...] = np.resize(self.words, out.shape)

    for words in ([0], [2**64 - 1], [0, 2**64 - 1], [2**63], [2**62]):
        stream = Extreme(KEY)
        stream.words = np.array(words, dtype=np.uint64)
        assert np.isfinite(stream.gaussian(6)).all()
        assert np.abs(stream.gaussian(6)).max() < 12.2


@pytest.mark.parametrize("use", [lambda s: s.bytes(1), lambda s: s.fill(np.empty(1))], ids=["bytes", "fill"])
def test_a_forked_copy_refuses_to_repeat_the_noise(use: Callable[[KeyStream], object]) -> None:
    stream = KeyStream()
    pid = os.fork()
    if pid == 0:
        try:
            use(stream)
        except UsageError:
            os._exit(7)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 7


def test_it_is_secret() -> None:
    stream = KeyStream(KEY)
    assert KEY.hex() not in repr(stream)
    assert repr(KEY) not in repr(stream)
    for leave in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            leave(stream)


def test_a_short_key_is_refused() -> None:
    with pytest.raises(UsageError, match="32 bytes"):
        KeyStream(b"short")
