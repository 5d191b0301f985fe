"""Can the coordinator and t - 1 sites tell which of two pairs of updates two honest sites sent, if both pairs have the
same sum? They hold all ciphertexts, the t - 1 shares that each honest site dealt to them, everybody's answers, and with
them the sum of keys; all that is theirs is taken off it. Their best guesses at the honest keys, linear statistics and
a trained classifier must do no better than a coin; with t shares, with a key used twice or without errors in the
ciphertexts, the very same statistics must be right every time.

The views and statistics are ``evaluation.threats.kit.distinguishing``. A statistic fails if its advantage's confidence
interval (Hoeffding, "Probability inequalities for sums of bounded random variables", 1963) does not hold 0. Its level
is such that all of this file's tests together fail by chance once in a million runs.
"""

import math

import numpy as np
import pytest

from cipherward.crypto.quorum import chunks
from cipherward.crypto.quorum.params import DEGREE
from cipherward.crypto.quorum.ring import fold, unfold
from cipherward.evaluation.threats.kit.distinguishing import (
    COLLUDING,
    GAMES,
    LARGE,
    PARAMS,
    SITES,
    THRESHOLD,
    Q,
    encoded,
    play,
    public_view,
    statistics,
    symmetric,
    trained,
    uploaded,
)
from cipherward.evaluation.threats.kit.parties import SITE

TRIALS = 700
FALSE_ALARM = 1e-6 / 40
"""Of one interval; there are fewer than 40."""


@pytest.fixture(scope="module")
def public():
    made = public_view()
    sample = np.random.default_rng(1).integers(0, Q, (2, DEGREE))
    assert np.array_equal(made.divide(made.multiply(sample)), sample)
    return made


def margin(trials):
    """Half the width of the interval around a measured advantage."""
    return 2 * math.sqrt(math.log(2 / FALSE_ALARM) / (2 * trials))


def advantage(scores, worlds):
    """2 P(right) - 1 of who says "the second" where the score is positive."""
    return 2 * np.mean((scores > 0) == (worlds == 1)) - 1


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
