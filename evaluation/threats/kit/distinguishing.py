"""Telling apart two pairs of updates with the same sum, from what the coordinator and some sites see: every guess at
the honest keys, linear statistics, and a trained classifier. The keys, errors and shares are as random as in a
hospital.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from flint import nmod_poly
from numpy.typing import NDArray

from cipherward.crypto.quorum.decoding import centred, lagrange, product
from cipherward.crypto.quorum.params import DEGREE, own_params
from cipherward.crypto.quorum.ring import unfold
from cipherward.crypto.quorum.sampling import PublicPolynomials
from cipherward.crypto.quorum.shamir import parse_share
from cipherward.evaluation.threats.kit.parties import SITE, SUITE

Array = NDArray[Any]
Pair = tuple[Array, Array]

CONTEXT = b"a plan"
SITES, THRESHOLD = 4, 3
HONEST = (1, 2)
COLLUDING = (3, 4)
"""t - 1 points: what the adversary has of every dealer's polynomial."""
PARAMS = own_params(SUITE.parameters("q32", 64.0, SITES))
Q = PARAMS.modulus


def symmetric(values: Any) -> Array:
    """Residues within +-q/2."""
    reduced = np.asarray(values, dtype=np.int64) % Q
    return np.where(reduced > Q // 2, reduced - Q, reduced)


class Multiplication:
    """By one fixed ring element, in the field of a whole batch. Natural order; exact, by 16-bit limbs."""

    def __init__(self, fixed: Array) -> None:
        self.twist = np.exp(1j * np.pi / DEGREE * np.arange(DEGREE))
        self.limbs = [np.fft.fft(limb * self.twist) for limb in (fixed % Q & 0xFFFF, fixed % Q >> 16)]

    def __call__(self, batch: Array) -> Array:
        """Of each row; int64 residues."""
        batch = batch % Q
        packed = np.fft.fft(((batch & 0xFFFF) + 1j * (batch >> 16)) * self.twist)
        low, high = (np.fft.ifft(packed * limb) * self.twist.conj() for limb in self.limbs)
        whole = [np.rint(part).astype(np.int64) % Q for part in (low.real, low.imag, high.real, high.imag)]
        middle = (whole[1] + whole[2]) % Q * (1 << 16) % Q
        total: Array = (whole[0] + middle + whole[3] * (1 << 16) % Q * (1 << 16)) % Q
        return total


def polynomial(chunk: int) -> tuple[Array, Array]:
    """The public polynomial of the chunk's first element, and its inverse."""
    words = np.empty((1, DEGREE), dtype=PARAMS.residue)
    folded = PublicPolynomials(PARAMS, CONTEXT).take([chunk], [0, 1], words, np.empty_like(words))[0]
    a = unfold(folded).astype(np.int64)
    ring = nmod_poly([1] + [0] * (DEGREE - 1) + [1], Q)
    gcd: Any
    gcd, _, inverse = ring.xgcd(nmod_poly((a % Q).tolist(), Q))
    if gcd != 1:
        raise ValueError("a public polynomial without an inverse")
    return a, np.array([int(c) for c in inverse.coeffs()], dtype=np.int64)


@dataclass
class Public:
    """Multiplication by a, by 1/a, and by a/a' where a' is the polynomial of the zero element."""

    multiply: Multiplication
    divide: Multiplication
    carry_over: Multiplication


def public_view() -> Public:
    """Of the plan."""
    (a, inverse), (_, inverse_zero) = polynomial(0), polynomial(1)
    return Public(Multiplication(a), Multiplication(inverse), Multiplication(Multiplication(a)(inverse_zero)))


@dataclass
class Views:
    """What the adversary sees in each trial. Rows are trials; polynomials in natural order."""

    worlds: Array
    """Which pair was sent; not part of the view."""
    hypotheses: list[list[Array]]
    """The two pairs of updates, each as integers in units of 1/D."""
    ciphertexts: Array
    """Shape (trials, 2, N), of the two honest sites."""
    zeros: Array
    """The first site's zero element. Shape (trials, N)."""
    shares: dict[int, Array]
    """By point, of the first honest site. Shape (trials, N), residues modulo p."""
    key_sum: Array
    """The sum of the honest keys. With the shares at t - 1 points it gives all answers: they are not listed."""
    again: Array
    """Control only: a known update under the first site's key, used a second time."""


def encoded(update: Array) -> Array:
    """In units of 1/D, natural order."""
    message = np.zeros(DEGREE, dtype=np.int64)
    message[: update.size] = np.rint(update.astype(np.float64) * PARAMS.scale)
    return unfold(message)


def uploaded(key: Any, update: Array) -> list[Array]:
    """The element of values and the zero element."""
    with SITE.cipher(key, CONTEXT, threads=1) as cipher:
        chunks = [np.frombuffer(chunk, PARAMS.residue) for chunk in cipher.encrypt(update)]
    return [unfold(chunk.astype(np.int64)) for chunk in chunks]


def play(
    pairs: list[Pair], trials: int, points: tuple[int, ...] = COLLUDING, *, reuse: bool = False
) -> Views:
    """Trials in which each of the two pairs is sent equally often, in a random order."""
    worlds = np.random.default_rng(trials).permutation(np.arange(trials) % 2)
    ciphertexts = np.empty((trials, 2, 2, DEGREE), dtype=np.int64)
    shares = {point: np.empty((trials, DEGREE), dtype=np.uint32) for point in points}
    key_sum = np.empty((trials, DEGREE), dtype=np.int64)
    again = np.zeros((trials, DEGREE), dtype=np.int64)
    for trial, world in enumerate(worlds):
        keys = [SITE.generate_key(PARAMS, b"site %d" % site) for site in HONEST]
        dealt = [key.deal(THRESHOLD, SITES) for key in keys]
        for site, key in enumerate(keys):
            ciphertexts[trial, site] = uploaded(key, pairs[world][site])
        for point in points:
            shares[point][trial] = unfold(parse_share(dealt[0][point - 1]))
        answers = {
            point: SITE.add_shares(PARAMS, [one[point - 1] for one in dealt]) for point in range(1, SITES + 1)
        }
        opened = next(SITE.combine(PARAMS, answers, THRESHOLD, len(keys)))
        key_sum[trial] = unfold(opened.key.polynomial())  # type: ignore[attr-defined]
        if reuse:
            keys[0]._spent = False  # type: ignore[attr-defined]
            again[trial], _ = uploaded(keys[0], np.zeros(1, np.float32))
    hypotheses = [[encoded(update) for update in pair] for pair in pairs]
    return Views(worlds, hypotheses, ciphertexts[:, :, 0], ciphertexts[:, 0, 1], shares, key_sum, again)


def interpolated(views: Views) -> Array:
    """The first site's key, if the points at hand were enough for its polynomial."""
    points = np.array(sorted(views.shares), dtype=np.int64)
    weights = lagrange(points, np.zeros(1, dtype=np.int64))
    rows = zip(*(views.shares[point] for point in sorted(views.shares)), strict=True)
    found = [centred(product(weights, np.stack(shares))[0]) for shares in rows]
    return np.stack(found)


def statistics(views: Views, public: Public) -> dict[str, Array]:
    """By name, for each trial: how much better the second hypothesis fits than the first."""
    first, second = views.ciphertexts[:, 0], views.ciphertexts[:, 1]
    guesses = {
        "half of the sum of keys": views.key_sum // 2,
        "the shares at hand, interpolated": interpolated(views),
        "a share": centred(next(iter(views.shares.values()))),
        "no key": np.zeros_like(views.key_sum),
    }
    found: dict[str, Array] = {}

    def compare(name: str, residual: Any) -> None:
        """``residual(pair)``: what should be small for the pair that was sent."""
        sizes = [np.abs(symmetric(residual(*pair))).mean(axis=1) for pair in views.hypotheses]
        found[name] = sizes[0] - sizes[1]

    for name, guess in guesses.items():
        masks = public.multiply(guess), public.multiply(views.key_sum - guess)
        compare(f"first site, {name}", lambda one, _, mask=masks[0]: first - mask - one)
        compare(f"second site, {name}", lambda _, two, mask=masks[1]: second - mask - two)
    compare("ciphertexts' difference", lambda one, two: first - second - (one - two))
    divided = public.divide(first)
    compare("division by a", lambda one, _: divided - public.divide(one[None, :]))
    carried = public.carry_over(views.zeros)
    compare("the zero element", lambda one, _: first - carried - one)
    compare("a key used twice", lambda one, _: first - views.again - one)
    towards = (views.hypotheses[1][0] - views.hypotheses[0][0]).astype(np.float64)
    found["correlation"] = symmetric(first) @ (towards / np.abs(towards).max())
    found["mean"] = symmetric(first).mean(axis=1)
    found["parity"] = ((first & 1) ^ (views.hypotheses[1][0] & 1)).mean(axis=1) - 0.5
    found["spread"] = np.abs(symmetric(first)).mean(axis=1) - Q / 4
    return found


def trained(features: Array, worlds: Array) -> Array:
    """Scores of a logistic regression (ridge, Newton's method) for the trials that it did not see: the odd ones."""
    scaled = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-300)
    design = np.hstack([scaled, np.ones((len(scaled), 1))])
    seen, wanted, weights = design[::2], worlds[::2], np.zeros(design.shape[1])
    for _ in range(20):
        chance = 1 / (1 + np.exp(-np.clip(seen @ weights, -30, 30)))
        curvature = (seen * (chance * (1 - chance))[:, None]).T @ seen + np.eye(len(weights))
        weights -= np.linalg.solve(curvature, seen.T @ (chance - wanted) + weights)
    scores: Array = design[1::2] @ weights
    return scores


LARGE = np.random.default_rng(7).choice([-64.0, 64.0], DEGREE).astype(np.float32)
SMALL = np.random.default_rng(8).uniform(-1, 1, DEGREE).astype(np.float32)
GAMES: dict[str, list[Pair]] = {
    "swapped": [(LARGE, -LARGE), (-LARGE, LARGE)],
    "redistributed": [(LARGE, SMALL), ((LARGE + SMALL) / 2, (LARGE + SMALL) / 2)],
}
