"""The quorum suite end to end: keys dealt, updates encrypted, added up and opened by t of n."""

import copy
import pickle
from itertools import combinations

import numpy as np
import pytest

from cipherward.crypto.quorum.key import SumKey
from cipherward.crypto.suites.registry import suite
from cipherward.crypto.suites.site_side import one_time_key_side
from cipherward.errors import FormatError, LimitError, UsageError, VerificationError

SUITE, SITE = suite("quorum"), one_time_key_side("quorum")
CONTEXT = b"manifest and plan record"
SETS = ["q32", "q16"]


class Round:
    """All of J's sites in one process."""

    def __init__(self, name, vectors, bound=None, context=CONTEXT):
        self.count = len(vectors)
        self.params = SUITE.parameters(name, bound, self.count)
        self.length = vectors[0].size
        self.threshold = 2 * self.count // 3 + 1
        self.keys = [SITE.generate_key(self.params, b"update %d" % i) for i in range(self.count)]
        self.uploads = [
            list(SITE.cipher(key, context).encrypt(vector))
            for key, vector in zip(self.keys, vectors, strict=True)
        ]
        self.shares = [key.deal(self.threshold, self.count) for key in self.keys]

    def total(self, who=None):
        who = range(self.count) if who is None else who
        with SUITE.chunk_adder(self.params) as adder:
            return [
                adder.add((self.uploads[site][index] for site in who), index, self.length)
                for index in range(self.params.chunk_count(self.length))
            ]

    def key(self, who=None, members=None):
        who = range(self.count) if who is None else who
        members = range(self.count) if members is None else members
        answers = {
            j + 1: SITE.add_shares(self.params, [self.shares[site][j] for site in who]) for j in members
        }
        return next(SITE.combine(self.params, answers, self.threshold, len(who))).key

    def open(self, total, key, context=CONTEXT):
        with SITE.cipher(key, context) as cipher:
            return cipher.open_sum(total, self.length, key.contributors)


def vectors(count, length, bound, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.uniform(-bound, bound, length).astype(np.float32) for _ in range(count)]


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("length", [1, 2048, 65_536, 65_537 + 3 * 2048])
def test_the_opened_sum_is_the_sum_within_the_predicted_error(name, length):
    bound = SUITE.parameter_sets[name].bound
    plain = vectors(4, length, bound)
    world = Round(name, plain)
    opened = world.open(world.total(), world.key())
    exact = np.sum(np.array(plain, dtype=np.float64), axis=0)
    assert opened.dtype == np.float64
    assert opened.shape == (length,)
    assert np.abs(opened - exact).max() <= world.params.error_bound(4)
    for upload, total in zip(world.uploads[0], world.total(), strict=True):
        assert len(upload) == len(total)


@pytest.mark.parametrize("name", SETS)
def test_any_contributors_and_any_threshold_of_members(name):
    plain = vectors(5, 300, 1.0)
    world = Round(name, plain, 1.0)
    for who in combinations(range(5), 3):
        exact = np.sum(np.array([plain[site] for site in who], dtype=np.float64), axis=0)
        total, key = world.total(who), world.key(who, members=who + tuple({0, 1, 2, 3, 4} - set(who))[:1])
        assert np.abs(world.open(total, key) - exact).max() <= world.params.error_bound(3)


def test_a_key_encrypts_once():
    params = SUITE.parameters("q32", None, 4)
    key = SITE.generate_key(params, b"")
    chunks = SITE.cipher(key, CONTEXT).encrypt(np.ones(3))
    for context in (CONTEXT, b"another plan"):
        with pytest.raises(UsageError, match="one update, once"):
            SITE.cipher(key, context).encrypt(np.ones(3))
    del key
    assert len(list(chunks)) == 2


def test_a_refused_vector_does_not_spend_the_key():
    params = SUITE.parameters("q32", None, 4)
    key = SITE.generate_key(params, b"")
    with SITE.cipher(key, CONTEXT) as cipher:
        for bad in (np.array([1.0, np.nan]), np.array([-np.inf, 0]), np.array([64.001])):
            with pytest.raises(LimitError):
                cipher.encrypt(bad)
        for bad in (np.ones((2, 2)), np.ones(3, dtype=np.int64)):
            with pytest.raises(UsageError):
                cipher.encrypt(bad)
        with pytest.raises(LimitError):
            cipher.encrypt(np.empty(0))
        cipher.encrypt(np.array([64.0, -64.0]))


def test_keys_have_no_repr_and_do_not_leave_the_process():
    params = SUITE.parameters("q32", None, 4)
    for key in (
        SITE.generate_key(params, b""),
        SumKey(params, np.zeros(2048, dtype=np.int64), 2),
    ):
        assert "omitted" in repr(key)
        for leave in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError):
                leave(key)


def test_another_plan_or_another_key_does_not_open():
    world = Round("q32", vectors(4, 5000, 64.0))
    with pytest.raises(VerificationError, match="encodes zero"):
        world.open(world.total(), world.key(), b"another plan")
    with pytest.raises(VerificationError, match="encodes zero"):
        world.open(world.total((0, 1, 2)), world.key((0, 1, 3)))


def test_structure_is_checked():
    world = Round("q16", vectors(4, 70_000, 1.0))
    total, key = world.total(), world.key()
    for bad in (total[:-1], [*total, total[0]], total[::-1], [total[0][:-2], *total[1:]]):
        with pytest.raises(FormatError):
            world.open(bad, key)
    high = np.full(total[0].__len__() // 2, 61441, dtype="<u2").tobytes()
    with pytest.raises(FormatError, match="not below the modulus"):
        world.open([high, *total[1:]], key)
