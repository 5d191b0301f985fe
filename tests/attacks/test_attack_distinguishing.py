"""Can the coordinator and t - 1 sites tell which of two pairs of updates two honest sites sent, if both pairs have the
same sum? They hold all ciphertexts, the t - 1 shares that each honest site dealt to them, everybody's answers, and with
them the sum of keys; all that is theirs is taken off it. Their best guesses at the honest keys, linear statistics and
a trained classifier must do no better than a coin; with t shares, with a key used twice or without errors in the
ciphertexts, the very same statistics must be right every time.

The keys, errors and shares are as random as in a hospital. A statistic fails if its advantage's confidence interval
(Hoeffding, "Probability inequalities for sums of bounded random variables", 1963) does not hold 0. Its level is such
that all of this file's tests together fail by chance once in a million runs.
"""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from flint import nmod_poly

from cipherward.crypto.quorum import chunks
from cipherward.crypto.quorum.decoding import centred, lagrange, product
from cipherward.crypto.quorum.params import DEGREE
from cipherward.crypto.quorum.ring import fold, unfold
from cipherward.crypto.quorum.sampling import PublicPolynomials
from cipherward.crypto.quorum.shamir import parse_share
from cipherward.evaluation.threats.kit.parties import SITE, SUITE

CONTEXT = b"a plan"
SITES, THRESHOLD = 4, 3
HONEST = (1, 2)
COLLUDING = (3, 4)
"""t - 1 points: what the adversary has of every dealer's polynomial."""
TRIALS = 700
FALSE_ALARM = 1e-6 / 40
"""Of one interval; there are fewer than 40."""
PARAMS = SUITE.parameters("q32", 64.0, SITES)
Q = PARAMS.modulus


def margin(trials):
    """Half the width of the interval around a measured advantage."""
    return 2 * math.sqrt(math.log(2 / FALSE_ALARM) / (2 * trials))


def symmetric(values):
    """Residues within +-q/2."""
    reduced = np.asarray(values, dtype=np.int64) % Q
    return np.where(reduced > Q // 2, reduced - Q, reduced)


class Multiplication:
    """By one fixed ring element, in the field of a whole batch. Natural order; exact, by 16-bit limbs."""

    def __init__(self, fixed):
        self.twist = np.exp(1j * np.pi / DEGREE * np.arange(DEGREE))
        self.limbs = [np.fft.fft(limb * self.twist) for limb in (fixed % Q & 0xFFFF, fixed % Q >> 16)]

    def __call__(self, batch):
        batch = batch % Q
        packed = np.fft.fft(((batch & 0xFFFF) + 1j * (batch >> 16)) * self.twist)
        low, high = (np.fft.ifft(packed * limb) * self.twist.conj() for limb in self.limbs)
        whole = [np.rint(part).astype(np.int64) % Q for part in (low.real, low.imag, high.real, high.imag)]
        middle = (whole[1] + whole[2]) % Q * (1 << 16) % Q
        return (whole[0] + middle + whole[3] * (1 << 16) % Q * (1 << 16)) % Q


def polynomial(chunk):
    """The public polynomial of the chunk's first element, and its inverse."""
    words = np.empty((1, DEGREE), dtype=PARAMS.residue)
    folded = PublicPolynomials(PARAMS, CONTEXT).take([chunk], [0, 1], words, np.empty_like(words))[0]
    a = unfold(folded).astype(np.int64)
    ring = nmod_poly([1] + [0] * (DEGREE - 1) + [1], Q)
    gcd, _, inverse = ring.xgcd(nmod_poly((a % Q).tolist(), Q))
    assert gcd == 1
    return a, np.array([int(c) for c in inverse.coeffs()], dtype=np.int64)


@dataclass
class Public:
    """Multiplication by a, by 1/a, and by a/a' where a' is the polynomial of the zero element."""

    multiply: Multiplication
    divide: Multiplication
    carry_over: Multiplication


@pytest.fixture(scope="module")
def public():
    (a, inverse), (_, inverse_zero) = polynomial(0), polynomial(1)
    made = Public(Multiplication(a), Multiplication(inverse), Multiplication(Multiplication(a)(inverse_zero)))
    sample = np.random.default_rng(1).integers(0, Q, (2, DEGREE))
    assert np.array_equal(made.divide(made.multiply(sample)), sample)
    return made


@dataclass
class Views:
    """What the adversary sees in each trial. Rows are trials; polynomials in natural order."""

    worlds: np.ndarray
    """Which pair was sent; not part of the view."""
    hypotheses: list
    """The two pairs of updates, each as integers in units of 1/D."""
    ciphertexts: np.ndarray
    """Shape (trials, 2, N), of the two honest sites."""
    zeros: np.ndarray
    """The first site's zero element. Shape (trials, N)."""
    shares: dict
    """By point, of the first honest site. Shape (trials, N), residues modulo p."""
    key_sum: np.ndarray
    """The sum of the honest keys. With the shares at t - 1 points it gives all answers: they are not listed."""
    again: np.ndarray
    """Control only: a known update under the first site's key, used a second time."""


def encoded(update):
    message = np.zeros(DEGREE, dtype=np.int64)
    message[: update.size] = np.rint(update.astype(np.float64) * PARAMS.scale)
    return unfold(message)


def uploaded(key, update):
    """The element of values and the zero element."""
    with SITE.cipher(key, CONTEXT, threads=1) as cipher:
        chunks = [np.frombuffer(chunk, PARAMS.residue) for chunk in cipher.encrypt(update)]
    return [unfold(chunk.astype(np.int64)) for chunk in chunks]


def play(pairs, trials, points=COLLUDING, reuse=False):
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
        key_sum[trial] = unfold(opened.key.polynomial())
        if reuse:
            keys[0]._spent = False
            again[trial], _ = uploaded(keys[0], np.zeros(1, np.float32))
    hypotheses = [[encoded(update) for update in pair] for pair in pairs]
    return Views(worlds, hypotheses, ciphertexts[:, :, 0], ciphertexts[:, 0, 1], shares, key_sum, again)


def interpolated(views):
    """The first site's key, if the points at hand were enough for its polynomial."""
    points = np.array(sorted(views.shares), dtype=np.int64)
    weights = lagrange(points, np.zeros(1, dtype=np.int64))
    rows = zip(*(views.shares[point] for point in sorted(views.shares)), strict=True)
    found = [centred(product(weights, np.stack(shares))[0]) for shares in rows]
    return np.stack(found)


def statistics(views, public):
    """By name, for each trial: how much better the second hypothesis fits than the first."""
    first, second = views.ciphertexts[:, 0], views.ciphertexts[:, 1]
    guesses = {
        "half of the sum of keys": views.key_sum // 2,
        "the shares at hand, interpolated": interpolated(views),
        "a share": centred(next(iter(views.shares.values()))),
        "no key": np.zeros_like(views.key_sum),
    }
    found = {}

    def compare(name, residual):
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


def advantage(scores, worlds):
    """2 P(right) - 1 of who says "the second" where the score is positive."""
    return 2 * np.mean((scores > 0) == (worlds == 1)) - 1


def trained(features, worlds):
    """Scores of a logistic regression (ridge, Newton's method) for the trials that it did not see: the odd ones."""
    scaled = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-300)
    design = np.hstack([scaled, np.ones((len(scaled), 1))])
    seen, wanted, weights = design[::2], worlds[::2], np.zeros(design.shape[1])
    for _ in range(20):
        chance = 1 / (1 + np.exp(-np.clip(seen @ weights, -30, 30)))
        curvature = (seen * (chance * (1 - chance))[:, None]).T @ seen + np.eye(len(weights))
        weights -= np.linalg.solve(curvature, seen.T @ (chance - wanted) + weights)
    return design[1::2] @ weights


LARGE = np.random.default_rng(7).choice([-64.0, 64.0], DEGREE).astype(np.float32)
SMALL = np.random.default_rng(8).uniform(-1, 1, DEGREE).astype(np.float32)
GAMES = {
    "swapped": [(LARGE, -LARGE), (-LARGE, LARGE)],
    "redistributed": [(LARGE, SMALL), ((LARGE + SMALL) / 2, (LARGE + SMALL) / 2)],
}


@pytest.mark.slow
@pytest.mark.parametrize("game", GAMES)
def test_t_minus_1_sites_and_the_coordinator_learn_nothing_but_the_sum(game, public):
    views = play(GAMES[game], TRIALS)
    found = statistics(views, public)
    measured = {name: advantage(scores, views.worlds) for name, scores in found.items()}
    telling = {name: value for name, value in measured.items() if abs(value) > margin(TRIALS)}
    assert not telling
    scores = trained(np.stack(list(found.values()), axis=1), views.worlds)
    assert abs(advantage(scores, views.worlds[1::2])) <= margin(TRIALS // 2)


@pytest.mark.parametrize("game", GAMES)
def test_t_shares_tell(game, public):
    """Control: one share more, and the same statistic is always right."""
    views = play(GAMES[game], 40, points=(2, *COLLUDING))
    found = statistics(views, public)
    assert advantage(found["first site, the shares at hand, interpolated"], views.worlds) == 1


def test_a_key_used_twice_tells(public):
    """Control: the first site has encrypted zeros under the same key before."""
    views = play(GAMES["swapped"], 40, reuse=True)
    assert advantage(statistics(views, public)["a key used twice"], views.worlds) == 1


def test_ciphertexts_without_errors_tell(public, monkeypatch):
    """Control: without errors a ciphertext is a linear system: only the right update leaves a short key, and agrees
    with the zero element."""
    monkeypatch.setattr(chunks, "binomial", lambda words, out: out.fill(0))
    views = play(GAMES["swapped"], 40)
    found = statistics(views, public)
    for name in ("division by a", "the zero element"):
        assert advantage(found[name], views.worlds) == 1


def test_the_classifier_finds_what_is_there(public):
    """Control: the trained classifier uses a telling statistic among those that are not."""
    views = play(GAMES["swapped"], 200, reuse=True)
    features = np.stack(list(statistics(views, public).values()), axis=1)
    assert advantage(trained(features, views.worlds), views.worlds[1::2]) > 1 - margin(100)


def test_folded_order_is_what_the_ring_uses(public):
    """The multiplication here agrees with the suite's: opening with the key leaves the message and small errors."""
    key = SITE.generate_key(PARAMS, b"")
    shares = {point + 1: share for point, share in enumerate(key.deal(THRESHOLD, SITES))}
    secret = next(SITE.combine(PARAMS, shares, THRESHOLD, 1)).key.polynomial()
    left = uploaded(key, LARGE)[0] - public.multiply(unfold(secret)[None, :])[0] - encoded(LARGE)
    assert np.abs(symmetric(left)).max() <= 32
    assert np.array_equal(fold(unfold(secret)), secret)
