"""Sharing of one-time keys: any t of n rebuild, t - 1 know nothing, and wrong answers show as far as they can.

The oracle is the definition, in Python's integers.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from cipherward.crypto.quorum import shamir
from cipherward.crypto.quorum.decoding import PRIME
from cipherward.crypto.quorum.shamir import (
    COEFFICIENTS,
    SHARE_BYTES,
    add_shares,
    candidates,
    split,
    uniform,
)
from cipherward.crypto.randomness import KeyStream
from cipherward.errors import UnavailableError, UsageError, VerificationError

KEY_BOUND = 32
STREAM_KEY = bytes(range(32))
SEEDS = st.integers(0, 2**32 - 1)


def combine(
    answers: Mapping[int, bytes], threshold: int, bound: int
) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    """The likeliest key, and the wrong points."""
    return next(candidates(answers, threshold, bound))


def secret_key(rng: np.random.Generator) -> NDArray[np.int64]:
    return rng.integers(-KEY_BOUND, KEY_BOUND + 1, COEFFICIENTS)


def share(values: Sequence[int] | NDArray[np.integer]) -> bytes:
    return np.asarray(values).astype("<u4").tobytes()


def noise(rng: np.random.Generator) -> bytes:
    return share(rng.integers(0, PRIME, COEFFICIENTS))


def dealt(secret: NDArray[np.int64], threshold: int, members: int) -> dict[int, bytes]:
    return dict(enumerate(split(secret, threshold, members, KeyStream()), start=1))


def shifted(answer: bytes, difference: NDArray[np.integer] | int) -> bytes:
    return share((np.frombuffer(answer, dtype="<u4").astype(np.int64) + difference) % PRIME)


def lagrange_weight(base: Sequence[int], point: int, target: int) -> int:
    weight = 1
    for other in base:
        if other != point:
            weight = weight * (target - other) * pow(point - other, -1, PRIME) % PRIME
    return weight


@st.composite
def sizes(draw: st.DrawFn, most: int = 40) -> tuple[int, int]:
    members = draw(st.integers(1, most))
    return draw(st.integers(members // 2 + 1, members)), members


# --- dealing and rebuilding


@given(sizes(), SEEDS)
@settings(max_examples=60)
def test_any_t_or_more_answers_give_the_key(size: tuple[int, int], seed: int) -> None:
    threshold, members = size
    rng = np.random.default_rng(seed)
    secret = secret_key(rng)
    shares = dealt(secret, threshold, members)
    chosen = rng.permutation(members)[: rng.integers(threshold, members + 1)] + 1
    found, wrong = combine({int(j): shares[int(j)] for j in chosen}, threshold, KEY_BOUND)
    assert found.dtype == np.int64
    assert np.array_equal(found, secret)
    assert wrong == ()


@pytest.mark.parametrize("members", range(1, 7))
def test_every_subset_of_up_to_six_members(members: int) -> None:
    secret = secret_key(np.random.default_rng(members))
    for threshold in range(members // 2 + 1, members + 1):
        shares = dealt(secret, threshold, members)
        for size in range(members + 1):
            for subset in combinations(shares, size):
                answers = {point: shares[point] for point in subset}
                if size < threshold:
                    with pytest.raises(UnavailableError, match=f"{size} answers are too few"):
                        combine(answers, threshold, KEY_BOUND)
                else:
                    assert np.array_equal(combine(answers, threshold, KEY_BOUND)[0], secret)


def test_shares_are_the_values_of_the_polynomials() -> None:
    """By the definition: the stream's 31-bit words are the coefficients of x, x**2, ... in order."""
    threshold, members = 5, 8
    secret = secret_key(np.random.default_rng(1))
    words = (
        np.frombuffer(KeyStream(STREAM_KEY).bytes(4 * (threshold - 1) * COEFFICIENTS), dtype="<u4") & PRIME
    )
    rows = [secret.tolist(), *words.reshape(threshold - 1, COEFFICIENTS).tolist()]
    shares = split(secret, threshold, members, KeyStream(STREAM_KEY))
    assert [len(one) for one in shares] == [SHARE_BYTES] * members
    for point, one in enumerate(shares, start=1):
        expected = [
            sum(c * point**k for k, c in enumerate(column)) % PRIME for column in zip(*rows, strict=True)
        ]
        assert np.frombuffer(one, dtype="<u4").tolist() == expected


def test_the_same_stream_deals_the_same_shares_and_another_does_not() -> None:
    secret = secret_key(np.random.default_rng(2))
    first = split(secret, 3, 4, KeyStream(STREAM_KEY))
    assert first == split(secret, 3, 4, KeyStream(STREAM_KEY))
    assert not set(first) & set(split(secret, 3, 4, KeyStream()))


@given(sizes(12), st.integers(1, 5), SEEDS)
@settings(max_examples=30)
def test_sums_of_shares_are_shares_of_the_sum(size: tuple[int, int], dealers: int, seed: int) -> None:
    threshold, members = size
    rng = np.random.default_rng(seed)
    keys = [secret_key(rng) for _ in range(dealers)]
    shares = [dealt(key, threshold, members) for key in keys]
    answers = {point: add_shares([one[point] for one in shares]) for point in shares[0]}
    found, wrong = combine(answers, threshold, KEY_BOUND * dealers)
    assert np.array_equal(found, np.sum(keys, axis=0))
    assert wrong == ()


def test_a_thousand_members_in_bounded_memory() -> None:
    rng = np.random.default_rng(3)
    secret = secret_key(rng)
    tracemalloc.start()
    shares = dict(enumerate(split(secret, 667, 1000, KeyStream()), start=1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80 << 20
    bad = {int(point): noise(rng) for point in rng.choice(1000, 166, replace=False) + 1}
    found, wrong = combine(shares | bad, 667, KEY_BOUND)
    assert np.array_equal(found, secret)
    assert wrong == tuple(sorted(bad))


@pytest.mark.parametrize(
    ("threshold", "members"), [(0, 0), (1, 2), (2, 4), (5, 4), (-1, -3), (500, 1000), (668, 1001), (0, 1)]
)
def test_thresholds_of_half_or_less_and_too_many_members_are_refused(threshold: int, members: int) -> None:
    with pytest.raises(UsageError, match="no key is shared"):
        split(np.zeros(COEFFICIENTS, dtype=np.int64), threshold, members, KeyStream())


@pytest.mark.parametrize(
    "secret",
    [
        np.zeros(COEFFICIENTS - 1, dtype=np.int64),
        np.zeros((1, COEFFICIENTS), dtype=np.int64),
        np.zeros(COEFFICIENTS, dtype=np.float64),
        np.full(COEFFICIENTS, PRIME // 2 + 1, dtype=np.int64),
        np.full(COEFFICIENTS, np.iinfo(np.int64).min, dtype=np.int64),
    ],
)
def test_only_centred_vectors_are_shared(secret: NDArray[np.int64]) -> None:
    with pytest.raises(UsageError, match="centred int64"):
        split(secret, 2, 3, KeyStream())


# --- secrecy


@given(sizes(8), SEEDS)
@settings(max_examples=30)
def test_t_minus_one_shares_fit_every_secret(size: tuple[int, int], seed: int) -> None:
    """Whatever t - 1 members see, for any other secret there is exactly one share that completes it."""
    threshold, members = size
    rng = np.random.default_rng(seed)
    shares = dealt(secret_key(rng), threshold, members)
    *seen, last = (int(j) for j in rng.permutation(members)[:threshold] + 1)
    other = secret_key(rng)
    base = [*seen, last]
    completing = other.astype(object)
    for point in seen:
        weight = lagrange_weight(base, point, 0)
        completing = completing - weight * np.frombuffer(shares[point], dtype="<u4").astype(object)
    completing = completing * pow(lagrange_weight(base, last, 0), -1, PRIME) % PRIME
    answers = {point: shares[point] for point in seen} | {last: share(completing.astype(np.int64))}
    assert np.array_equal(combine(answers, threshold, KEY_BOUND)[0], other)


@pytest.mark.parametrize("level", [-KEY_BOUND, 0, KEY_BOUND])
def test_t_minus_one_shares_are_uniform_whatever_the_secret(level: int) -> None:
    """Jointly: two shares of three, each residue in one of 8 x 8 cells; and each share alone, finely."""
    secret = np.full(COEFFICIENTS, level, dtype=np.int64)
    pairs = [split(secret, 3, 4, KeyStream())[:2] for _ in range(20)]
    first, second = (np.concatenate([np.frombuffer(p[i], dtype="<u4") for p in pairs]) for i in (0, 1))
    cells = np.bincount((first // (PRIME // 8 + 1)) * 8 + second // (PRIME // 8 + 1), minlength=64)
    assert stats.chisquare(cells).pvalue > 1e-5
    for values in (first, second):
        assert stats.kstest(values / PRIME, "uniform").pvalue > 1e-5


class RiggedStream(KeyStream):
    """A stream that says what it is told to."""

    def __init__(self, *answers: bytes) -> None:
        super().__init__(STREAM_KEY)
        self.answers = list(answers)

    def bytes(self, count: int) -> bytes:
        answer = self.answers.pop(0)
        assert len(answer) == count
        return answer


def test_p_itself_is_drawn_again() -> None:
    """Words of 31 bits: the top bit is dropped, p is rejected, and later words move up."""
    words = share([PRIME, 5, 2**32 - 1, 2**31 + 7, PRIME - 1])
    assert uniform(RiggedStream(words, share([PRIME, 0]), share([9])), 5).tolist() == [5, 7, PRIME - 1, 0, 9]


def test_coefficients_are_uniform() -> None:
    assert stats.kstest(uniform(KeyStream(), 200_000) / PRIME, "uniform").pvalue > 1e-5


# --- wrong answers


@given(sizes(16), SEEDS, st.sampled_from(["noise", "one coordinate", "all the same", "zero", "swapped"]))
@settings(max_examples=150)
def test_wrong_answers_are_located_up_to_half_of_what_is_to_spare(
    size: tuple[int, int], seed: int, kind: str
) -> None:
    threshold, members = size
    rng = np.random.default_rng(seed)
    secret = secret_key(rng)
    shares = dealt(secret, threshold, members)
    answering = sorted(int(j) for j in rng.permutation(members)[: rng.integers(threshold, members + 1)] + 1)
    bad = sorted(int(j) for j in rng.permutation(answering)[: (len(answering) - threshold) // 2])
    answers = {point: shares[point] for point in answering}
    for place, point in enumerate(bad):
        if kind == "noise":
            answers[point] = noise(rng)
        elif kind == "one coordinate":
            difference = np.zeros(COEFFICIENTS, dtype=np.int64)
            difference[rng.integers(COEFFICIENTS)] = rng.integers(1, PRIME)
            answers[point] = shifted(answers[point], difference)
        elif kind == "all the same":
            answers[point] = shifted(answers[point], 1)
        elif kind == "zero":
            answers[point] = bytes(SHARE_BYTES)
        else:
            answers[point] = shares[bad[place - 1] if len(bad) > 1 else point % members + 1]
    found, wrong = combine(answers, threshold, KEY_BOUND)
    assert np.array_equal(found, secret)
    assert wrong == tuple(bad)


def test_each_coordinate_of_each_answer_is_checked() -> None:
    rng = np.random.default_rng(4)
    secret = secret_key(rng)
    shares = dealt(secret, 3, 5)
    for coordinate in (0, 1, 1023, COEFFICIENTS - 1):
        for point in shares:
            difference = np.zeros(COEFFICIENTS, dtype=np.int64)
            difference[coordinate] = 1
            found, wrong = combine(shares | {point: shifted(shares[point], difference)}, 3, KEY_BOUND)
            assert np.array_equal(found, secret)
            assert wrong == (point,)


CANCELLING = np.array([1, -1] + [0] * (COEFFICIENTS - 2))
"""A difference that a sum over all coordinates does not show."""


def test_the_combination_that_is_decoded_cannot_be_foreseen() -> None:
    """With one that members knew, these errors would cancel; there are too many subsets to find the key."""
    secret = secret_key(np.random.default_rng(12))
    shares = dealt(secret, 20, 30)
    bad = {point: shifted(shares[point], CANCELLING * (987654321 + point)) for point in (1, 5, 12, 20, 30)}
    found, wrong = combine(shares | bad, 20, KEY_BOUND)
    assert np.array_equal(found, secret)
    assert wrong == tuple(bad)


def test_an_error_that_the_combination_hides_is_still_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = secret_key(np.random.default_rng(13))
    shares = dealt(secret, 3, 5)
    monkeypatch.setattr(shamir, "uniform", lambda stream, count: np.ones(count, dtype=np.uint32))
    found, wrong = combine(shares | {2: shifted(shares[2], CANCELLING * 987654321)}, 3, KEY_BOUND)
    assert np.array_equal(found, secret)
    assert wrong == (2,)


@pytest.mark.parametrize("threshold", [2, 3, 4])
def test_with_t_answers_only_the_bound_on_the_key_shows_a_wrong_one(threshold: int) -> None:
    rng = np.random.default_rng(5)
    secret = secret_key(rng)
    shares = dealt(secret, threshold, threshold)
    for bad in (noise(rng), bytes(SHARE_BYTES), shifted(shares[2], 1)):
        with pytest.raises(VerificationError, match="member who gave it or a dealer") as failure:
            combine(shares | {2: bad}, threshold, KEY_BOUND)
        assert failure.value.code == "CW-300"
    # A crafted one passes: what refuses it is the zero element of the opened sum.
    weight = lagrange_weight(list(shares), 2, 0)
    forged = shifted(shares[2], -np.sign(secret) * pow(weight, -1, PRIME) % PRIME)
    assert np.array_equal(combine(shares | {2: forged}, threshold, KEY_BOUND)[0], secret - np.sign(secret))


def test_a_key_out_of_its_bound_is_refused_however_many_agree() -> None:
    secret = np.zeros(COEFFICIENTS, dtype=np.int64)
    secret[7] = -(KEY_BOUND + 1)
    shares = dealt(secret, 3, 5)
    assert np.array_equal(combine(shares, 3, KEY_BOUND + 1)[0], secret)
    with pytest.raises(VerificationError):
        combine(shares, 3, KEY_BOUND)


@pytest.mark.parametrize(
    ("members", "threshold", "bad"), [(4, 3, 1), (6, 4, 2), (7, 4, 2), (7, 5, 2), (10, 7, 3)]
)
def test_beyond_what_can_be_located_subsets_find_the_key(members: int, threshold: int, bad: int) -> None:
    rng = np.random.default_rng(members)
    secret = secret_key(rng)
    shares = dealt(secret, threshold, members)
    assert bad > (members - threshold) // 2
    for _ in range(3):
        wrong = sorted(int(j) for j in rng.choice(members, bad, replace=False) + 1)
        found, named = combine(shares | {point: noise(rng) for point in wrong}, threshold, KEY_BOUND)
        assert np.array_equal(found, secret)
        assert named == tuple(wrong)


def test_fewer_than_t_right_answers_give_an_error_that_names_nobody() -> None:
    rng = np.random.default_rng(6)
    shares = dealt(secret_key(rng), 5, 7)
    with pytest.raises(VerificationError) as failure:
        combine(shares | {point: noise(rng) for point in (1, 2, 6)}, 5, KEY_BOUND)
    assert str(failure.value) == (
        "CW-300 the answers give no key of the sum, because no key within its bound lies on enough of the 7 "
        "answers of which 5 must agree, and a wrong answer accuses the member who gave it or a dealer who "
        "dealt it. Abort the round; its updates are spent."
    )


def test_a_hopeless_search_ends() -> None:
    rng = np.random.default_rng(7)
    shares = dealt(secret_key(rng), 20, 30)
    with pytest.raises(VerificationError):
        combine(shares | {point: noise(rng) for point in range(1, 12)}, 20, KEY_BOUND)


def test_a_dealer_can_make_an_honest_member_look_wrong() -> None:
    """Member 4 adds up what it was dealt. The point is located, and says nothing about whose fault it is."""
    rng = np.random.default_rng(8)
    keys = [secret_key(rng) for _ in range(3)]
    shares = [dealt(key, 4, 6) for key in keys]
    shares[1][4] = noise(rng)
    answers = {point: add_shares([one[point] for one in shares]) for point in shares[0]}
    found, wrong = combine(answers, 4, 3 * KEY_BOUND)
    assert np.array_equal(found, np.sum(keys, axis=0))
    assert wrong == (4,)


def crafted(
    secret: NDArray[np.int64], shares: dict[int, bytes], liars: tuple[int, ...], kept: tuple[int, ...]
) -> tuple[dict[int, bytes], NDArray[np.int64]]:
    """Answers by which ``liars``, with the honest points ``kept``, vote for a key of their choice; that key.

    They add step * prod (1 - x/k) over the kept points k, which is 0 there and ``step`` at x = 0.
    """
    step = np.where(secret > 0, -1, 1)
    answers = dict(shares)
    for liar in liars:
        value = 1
        for point in kept:
            value = value * (point - liar) * pow(point, -1, PRIME) % PRIME
        answers[liar] = shifted(shares[liar], step * value)
    return answers, secret + step


def test_crafted_answers_beyond_the_located_number_can_win_and_the_right_key_is_still_offered() -> None:
    """Two liars of five at t = 3, where one wrong answer can be located: they make the honest one look wrong."""
    secret = secret_key(np.random.default_rng(9))
    secret[0] = KEY_BOUND
    shares = dealt(secret, 3, 5)
    answers, forged = crafted(secret, shares, (1, 2), (3, 4))
    first, *others = candidates(answers, 3, KEY_BOUND)
    assert np.array_equal(first[0], forged)
    assert first[1] == (5,)
    ((found, wrong),) = others
    assert np.array_equal(found, secret)
    assert wrong == (1, 2)


def test_no_order_of_subsets_can_be_aimed_at() -> None:
    """One liar of four at t = 3, where none can be located: which of two fitting keys comes first is random."""
    secret = secret_key(np.random.default_rng(10))
    shares = dealt(secret, 3, 4)
    answers, _ = crafted(secret, shares, (1,), (2, 3))
    found = [list(candidates(answers, 3, KEY_BOUND)) for _ in range(40)]
    assert {tuple(sorted(wrong for _, wrong in one)) for one in found} == {((1,), (4,))}
    assert {one[0][1] for one in found} == {(1,), (4,)}
