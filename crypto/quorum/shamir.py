"""Shamir's secret sharing of a one-time key, and the sum of keys rebuilt from members' answers.

Each of the key's 2048 coefficients is shared over Z_p, p = 2**31 - 1, by a polynomial of degree below t
(Shamir, "How to share a secret", 1979): member j gets the values at x = j, and any t values give the constant
term while t - 1 say nothing about it. Sums of shares are shares of the sum, so members add up what U's dealers
gave them, and only the sum of keys is ever rebuilt.

A share, and an answer, is 2048 residues below p as little-endian uint32: 8192 bytes.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from cipherward.crypto.quorum.decoding import (
    PRIME,
    Residues,
    centred,
    lagrange,
    powers,
    product,
    reduced,
    residues,
    wrong_positions,
)
from cipherward.crypto.randomness import KeyStream
from cipherward.errors import FormatError, UnavailableError, UsageError, VerificationError

COEFFICIENTS = 2048
SHARE_BYTES = 4 * COEFFICIENTS
MAX_MEMBERS = 1000
MAX_SUBSETS = 500
"""Subsets of answers tried when no unique decoding exists. C(12, 9) = 220: with up to 12 sites, that is all."""

_WORD = np.dtype("<u4")


def split(secret: NDArray[np.int64], threshold: int, members: int, stream: KeyStream) -> list[bytes]:
    """Shares of ``secret`` for the points 1 to ``members``, in order; any ``threshold`` of them give it back.

    ``secret``: shape (2048,), int64, centred (|coefficient| < p/2). ``stream`` yields the polynomials'
    coefficients of x, x**2, ... one after the other, 2048 words of 31 bits each, and must never be used again.
    Raises UsageError unless members/2 < threshold <= members <= 1000.
    """
    if not (members < 2 * threshold <= 2 * members and members <= MAX_MEMBERS):
        raise UsageError(
            f"no key is shared among {members} members with threshold {threshold}",
            why=f"the threshold is more than half of them and at most all, and they are at most {MAX_MEMBERS}",
        )
    shaped = secret.shape == (COEFFICIENTS,) and secret.dtype == np.int64
    if not shaped or secret.max() > PRIME // 2 or secret.min() < -(PRIME // 2):
        raise UsageError(f"what is shared must be {COEFFICIENTS} centred int64 residues")
    coefficients = np.empty((threshold, COEFFICIENTS), dtype=np.uint32)
    coefficients[0] = residues(secret)
    coefficients[1:] = uniform(stream, (threshold - 1) * COEFFICIENTS).reshape(-1, COEFFICIENTS)
    points = np.arange(1, members + 1, dtype=np.int64)
    return [row.astype(_WORD).tobytes() for row in product(powers(points, threshold), coefficients)]


def uniform(stream: KeyStream, count: int) -> NDArray[np.uint32]:
    """``count`` residues from the stream, exactly uniform: words of 31 bits, and p itself is drawn again."""
    out = np.empty(0, dtype=np.uint32)
    while len(out) < count:
        words = np.frombuffer(stream.bytes(4 * (count - len(out))), dtype=_WORD) & np.uint32(PRIME)
        out = np.concatenate([out, words[words != PRIME]])
    return out


def parse_share(share: bytes) -> NDArray[np.uint32]:
    """The residues of a share or an answer, shape (2048,). FormatError for another size or a value not below p."""
    if len(share) != SHARE_BYTES:
        raise FormatError(f"a share has {len(share)} bytes", why=f"it must have {SHARE_BYTES}")
    values = np.frombuffer(share, dtype=_WORD)
    if values.max() >= PRIME:
        raise FormatError("a share has a value that is not a residue", why=f"values must be below {PRIME}")
    return values


def add_shares(shares: Sequence[bytes]) -> bytes:
    """The sum of up to 1000 dealers' shares at one point. FormatError for bad bytes, UsageError for none."""
    if not 1 <= len(shares) <= MAX_MEMBERS:
        raise UsageError(f"{len(shares)} shares to add up", why=f"there are 1 to {MAX_MEMBERS} dealers")
    total = np.zeros(COEFFICIENTS, dtype=np.uint64)
    for share in shares:
        total += parse_share(share)
    return reduced(total).astype(_WORD).tobytes()


def candidates(
    answers: Mapping[int, bytes], threshold: int, bound: int
) -> Iterator[tuple[NDArray[np.int64], tuple[int, ...]]]:
    """Secrets within the bound that fit at least ``threshold`` answers, each with the points that do not fit it.

    1. If all m answers lie on one polynomial of degree below t, its constant term is the only candidate. With
       m = t that is always so, and only the bound on the key can show a wrong answer.
    2. Otherwise up to floor((m - t)/2) wrong answers are located by decoding (and then every coordinate of
       every other answer lies on the polynomial).
    3. Then subsets of t answers, in random order: all, or 500 of them if there are more.

    A wrong answer that nobody crafted moves a subset's secret to a random place, which lies within the bound
    with probability ((2 bound + 1)/p)**(coefficients that it moves): below 10**-9000 for a random answer at a
    bound of 32000. But beyond the located number a *crafted* answer can put a secret of its maker's choice
    within the bound, and even honest answers off its polynomial. The zero elements of the opened sum refuse
    that secret; a caller that meets such a refusal can go on to the next candidate.

    ``answers`` by point, 1 to 1000; secrets are int64 of shape (2048,), centred, |coefficient| <= ``bound``. A
    wrong point accuses the member who answered *or* a dealer who dealt it: never blame automatically. Raises,
    when called, UnavailableError for fewer than ``threshold`` answers, FormatError for bad bytes, UsageError
    for points or limits out of range; and VerificationError, which names nobody, in the place of a first
    candidate if there is none.
    """
    if not 1 <= threshold <= MAX_MEMBERS or not 0 <= bound <= PRIME // 2:
        raise UsageError(f"threshold {threshold} or bound {bound} is out of range")
    if not all(1 <= point <= MAX_MEMBERS for point in answers):
        raise UsageError(f"answers are for points from 1 to {MAX_MEMBERS}")
    if len(answers) < threshold:
        raise UnavailableError(
            f"{len(answers)} answers are too few",
            why=f"{threshold} members must answer before the sum can be opened",
            fix="Wait for more members, or abort the round",
        )
    points = np.array(sorted(answers), dtype=np.int64)
    values = np.stack([parse_share(answers[point]) for point in points.tolist()])
    return _one_at_least(_candidates(points, values, threshold, bound), len(points), threshold)


def _one_at_least(
    found: Iterator[tuple[NDArray[np.int64], tuple[int, ...]]], answers: int, threshold: int
) -> Iterator[tuple[NDArray[np.int64], tuple[int, ...]]]:
    none = True
    for one in found:
        none = False
        yield one
    if none:
        raise VerificationError(
            "the answers give no key of the sum",
            why=f"no key within its bound lies on enough of the {answers} answers of which {threshold} must "
            "agree, and a wrong answer accuses the member who gave it or a dealer who dealt it",
            fix="Abort the round; its updates are spent",
        )


def _candidates(
    points: NDArray[np.int64], values: NDArray[np.uint32], threshold: int, bound: int
) -> Iterator[tuple[NDArray[np.int64], tuple[int, ...]]]:
    secret, fits = _fit(points, values, np.arange(threshold))
    if fits.all():
        if _within(secret, bound):
            yield secret, ()
        return
    seen = set()
    wrong = _located(points, values, threshold)
    if wrong is not None:
        secret, fits = _fit(points, values, np.flatnonzero(~wrong)[:threshold])
        # They differ only if the random combination hid a wrong coordinate, with probability m/p.
        if np.array_equal(fits, ~wrong) and _within(secret, bound):
            seen.add(secret.tobytes())
            yield secret, tuple(points[wrong].tolist())
    for subset in _subsets(len(points), threshold):
        weights = lagrange(points[subset], np.zeros(1, dtype=np.int64))
        if _within(centred(product(weights, values[subset])[0]), bound):
            secret, fits = _fit(points, values, subset)
            if secret.tobytes() not in seen:
                seen.add(secret.tobytes())
                yield secret, tuple(points[~fits].tolist())


def _fit(
    points: NDArray[np.int64], values: NDArray[np.uint32], base: NDArray[np.intp]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The constant term of the polynomial through the answers ``base``, and which of all answers lie on it."""
    fits = np.zeros(len(points), dtype=np.bool_)
    fits[base] = True
    others = np.flatnonzero(~fits)
    matrix = lagrange(points[base], np.concatenate([np.zeros(1, dtype=np.int64), points[others]]))
    predicted = product(matrix, values[base])
    fits[others] = (predicted[1:] == values[others]).all(axis=1)
    return centred(predicted[0]), fits


def _located(
    points: NDArray[np.int64], values: NDArray[np.uint32], threshold: int
) -> NDArray[np.bool_] | None:
    """Which answers are wrong, if that can be told.

    One random combination of all coordinates, unknown to whoever answered, is a Reed-Solomon word with the
    same wrong positions, unless an answer's differences cancel by chance, with probability 1/p. (Words too far
    from the code stay so as well: Ben-Sasson et al., "Proximity gaps for Reed-Solomon codes", 2020.)
    """
    combination: Residues = uniform(KeyStream(), COEFFICIENTS).astype(np.uint64)
    word = product(combination[None, :], values.T)[0].astype(np.uint64)
    return wrong_positions(points, word, threshold)


def _subsets(count: int, size: int) -> Iterator[NDArray[np.intp]]:
    """Up to 500 subsets of ``size`` positions in an order that no answer can have been made for."""
    source = secrets.SystemRandom()
    if math.comb(count, size) <= MAX_SUBSETS:
        everything = [np.array(subset) for subset in combinations(range(count), size)]
        source.shuffle(everything)
        yield from everything
        return
    for _ in range(MAX_SUBSETS):
        yield np.array(sorted(source.sample(range(count), size)))


def _within(secret: NDArray[np.int64], bound: int) -> bool:
    return bool(np.abs(secret).max() <= bound)
