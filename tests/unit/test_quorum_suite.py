"""The quorum suite end to end: keys dealt, updates encrypted, added up and opened by t of n."""

import copy
import os
import pickle
import threading
import time
import tracemalloc
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cipherward.crypto.quorum.chunks import ChunkEncryptor
from cipherward.crypto.quorum.key import QuorumKey, SumKey
from cipherward.crypto.quorum.ring import Multiplier
from cipherward.crypto.suites.payload import Layout, build, split
from cipherward.crypto.suites.registry import suite
from cipherward.crypto.suites.site_side import one_time_key_side, site_side, study_key_side
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


@pytest.mark.parametrize("name", SETS)
def test_the_zero_chunk_finds_a_key_that_is_wrong_in_one_place(name):
    world = Round(name, vectors(4, 100, 1.0), 1.0)
    total, right = world.total(), world.key()
    for position, change in ((0, 1), (2047, -1), (777, 64)):
        secret = right.polynomial().copy()
        secret[position] += change
        with pytest.raises(VerificationError, match="encodes zero"):
            world.open(total, SumKey(world.params, secret, 4))
    world.open(total, right)


@pytest.mark.parametrize("name", SETS)
def test_every_coefficient_of_every_zero_element_counts(name):
    world = Round(name, vectors(4, 100, 1.0), 1.0)
    *data, zeros = world.total()
    params, key = world.params, world.key()
    for position in range(0, params.zero_elements * 2048, 1023):
        residues = np.frombuffer(zeros, dtype=params.residue).astype(np.int64)
        residues[position] = (residues[position] + 3 * params.zero_bound(4)) % params.modulus
        with pytest.raises(VerificationError, match="encodes zero"):
            world.open([*data, residues.astype(params.residue).tobytes()], key)


def test_the_zero_chunk_finds_one_upload_passed_off_as_the_sum():
    world = Round("q32", vectors(4, 100, 64.0))
    with pytest.raises(VerificationError, match="encodes zero"):
        world.open(world.uploads[0], world.key())


def test_a_sum_key_beyond_its_bound_is_refused_before_anything_is_opened():
    params = SUITE.parameters("q32", None, 10)
    secret = np.zeros(2048, dtype=np.int64)
    for value in (32 * 3, -32 * 3):
        secret[5] = value
        SumKey(params, secret, 3)
        with pytest.raises(VerificationError, match="exceeds 64"):
            SumKey(params, secret, 2)
    for bad in (secret[:-1], secret.astype(np.int32)):
        with pytest.raises(UsageError):
            SumKey(params, bad, 3)
    with pytest.raises(LimitError):
        SumKey(params, secret, 11)


def test_structure_is_checked():
    world = Round("q16", vectors(4, 70_000, 1.0))
    total, key = world.total(), world.key()
    for bad in (total[:-1], [*total, total[0]], total[::-1], [total[0][:-2], *total[1:]], []):
        with pytest.raises(FormatError):
            world.open(bad, key)
    high = np.full(len(total[0]) // 2, 61441, dtype="<u2").tobytes()
    with pytest.raises(FormatError, match="not below the modulus"):
        world.open([high, *total[1:]], key)


def test_keys_do_only_what_they_are_for():
    world = Round("q32", vectors(4, 100, 64.0))
    with SITE.cipher(world.key(), CONTEXT) as cipher:
        with pytest.raises(UsageError, match="encrypts nothing"):
            cipher.encrypt(np.ones(3))
        with pytest.raises(UsageError, match="sum of 4 keys"):
            cipher.open_sum(world.total(), 100, 3)
    with pytest.raises(UsageError, match="opens a sum"):
        cipher.open_sum(world.total(), 100, 4)  # closed: it has forgotten its key
    with pytest.raises(UsageError, match="opens nothing"):
        SITE.cipher(world.keys[0], CONTEXT).open_sum(world.total(), 100, 4)
    with pytest.raises(UsageError, match="0 threads"):
        SITE.cipher(world.keys[0], CONTEXT, threads=0)
    shared = study_key_side("shared-key")
    with pytest.raises(UsageError, match="belongs to the suite shared-key"):
        SITE.cipher(shared.generate_key(suite("shared-key").parameters("seal-4096-48")), CONTEXT)


def test_a_key_is_dealt_one_way():
    params = SUITE.parameters("q32", None, 7)
    key = SITE.generate_key(params, b"")
    shares = key.deal(5, 7)
    assert key.deal(5, 7) == shares
    assert {len(share) for share in shares} == {SITE.share_bytes(params)}
    with pytest.raises(UsageError, match="already been dealt"):
        key.deal(4, 7)
    # Refused numbers do not count, and other numbers have other polynomials.
    with pytest.raises(UsageError):
        SITE.generate_key(params, b"").deal(3, 7)
    material = os.urandom(32)
    first, second = QuorumKey(params, material, b"").deal(4, 5), QuorumKey(params, material, b"").deal(4, 6)
    assert not set(first) & set(second)


def test_a_repeated_random_source_is_hedged(monkeypatch):
    """A cloned machine gets the same 32 bytes twice. Another update, or another attempt, has another key."""
    monkeypatch.setattr(os, "urandom", bytes)
    params = SUITE.parameters("q32", None, 4)
    one, other, again = (SITE.generate_key(params, hedge) for hedge in (b"a", b"b", b"a"))
    assert one.deal(3, 4) == again.deal(3, 4) != other.deal(3, 4)
    secrets = [key.spend(CONTEXT) for key in (one, other, again)]
    assert np.count_nonzero(secrets[0][0] == secrets[1][0]) < 400
    assert secrets[0][1] == secrets[2][1] != secrets[1][1]
    # The errors' key depends on the plan: public polynomials and errors change together.
    assert SITE.generate_key(params, b"a").spend(b"other plan")[1] != secrets[0][1]


def test_every_key_has_256_fresh_bits(monkeypatch):
    """Flower 1.41 seeds its pairwise masks with at most 28 bits (2026). No fewer than 256 go into a key here."""
    asked, urandom = [], os.urandom

    def drawn(count):
        asked.append(count)
        return urandom(count)

    monkeypatch.setattr(os, "urandom", drawn)
    params = SUITE.parameters("q32", None, 4)
    streams = {SITE.generate_key(params, b"").spend(CONTEXT)[1] for _ in range(5)}
    assert asked == [32] * 5 and len(streams) == 5
    assert {len(stream) for stream in streams} == {32}
    for short in (b"", bytes(4), bytes(31)):
        with pytest.raises(UsageError, match="32 random bytes"):
            QuorumKey(params, short, b"hedge")


def test_without_a_repeat_nothing_repeats():
    params = SUITE.parameters("q32", None, 4)
    vector = np.zeros(4096)
    chunks = [
        b"".join(SITE.cipher(SITE.generate_key(params, b""), CONTEXT).encrypt(vector)) for _ in range(3)
    ]
    residues = [np.frombuffer(one, dtype="<u4") for one in chunks]
    assert all(np.count_nonzero(a == b) < 4 for a, b in combinations(residues, 2))


def test_a_ciphertext_looks_uniform():
    params = SUITE.parameters("q32", 1.0, 2)
    upload = SITE.cipher(SITE.generate_key(params, b""), CONTEXT).encrypt(
        np.ones(1_000_000, dtype=np.float32)
    )
    counts, _ = np.histogram(
        np.frombuffer(b"".join(upload), dtype="<u4"), bins=256, range=(0, params.modulus)
    )
    assert stats.chisquare(counts).pvalue > 1e-9


@pytest.mark.parametrize("name", SETS)
def test_residues_are_exact_around_multiples_of_q(name):
    params = SUITE.parameters(name, 1.0, 2)
    secret, errors = SITE.generate_key(params, b"").spend(CONTEXT)
    multiplier = Multiplier(secret, params.modulus)
    encryptor = ChunkEncryptor(params, CONTEXT, multiplier, errors, np.zeros(65_536))
    most = 2**48 // params.modulus
    quotients = np.random.default_rng(0).integers(-most + 1, most, 32 * 2048 // 4)
    offsets = np.array([[-1], [0], [1], [params.modulus // 2]])
    values = (quotients * params.modulus + offsets).reshape(32, 2048)
    got = encryptor._reduced(values.astype(np.float64))
    np.testing.assert_array_equal(got, values % params.modulus)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_nothing(threads):
    length = 21 * 65_536 + 1000  # batches of two chunks, the last with the zero chunk
    params = SUITE.parameters("q32", None, 4)
    vector = vectors(1, length, 64.0)[0]
    made = [
        list(SITE.cipher(QuorumKey(params, bytes(32), b"h"), CONTEXT, threads=count).encrypt(vector))
        for count in (1, threads)
    ]
    assert made[0] == made[1]
    secret = QuorumKey(params, bytes(32), b"h").spend(CONTEXT)[0]
    opened = [
        SITE.cipher(SumKey(params, secret, 1), CONTEXT, threads=count).open_sum(made[0], length, 1)
        for count in (1, threads)
    ]
    np.testing.assert_array_equal(opened[0], opened[1])
    assert np.abs(opened[0] - vector).max() <= params.error_bound(1)
    broken = [made[0][0], made[0][1][:-4], *made[0][2:]]
    with pytest.raises(FormatError, match="sum chunk 1"):
        SITE.cipher(SumKey(params, secret, 1), CONTEXT, threads=threads).open_sum(broken, length, 1)


def test_an_abandoned_stream_leaves_no_threads():
    params = SUITE.parameters("q32", None, 4)
    before = threading.active_count()
    stream = SITE.cipher(SITE.generate_key(params, b""), CONTEXT, threads=2).encrypt(np.ones(40 * 65_536))
    next(stream)
    stream.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("threads", [1, 2])
def test_memory_is_bounded(threads):
    params = SUITE.parameters("q32", None, 4)
    vector = np.ones(200 * 65_536, dtype=np.float32)  # 52 MB, and as much again encrypted
    key = SITE.generate_key(params, b"")
    tracemalloc.start()
    stream = SITE.cipher(key, CONTEXT, threads=threads).encrypt(vector)
    next(stream)
    time.sleep(0.3)  # a slow network: nobody must run ahead of it
    for _ in stream:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 25e6


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_vectors_add_up(data):
    name = data.draw(st.sampled_from(SETS))
    length = data.draw(st.integers(1, 40))
    kind = data.draw(st.sampled_from([np.float32, np.float64]))
    values = st.floats(-1, 1, width=np.finfo(kind).bits)
    plain = [
        np.array(data.draw(st.lists(values, min_size=length, max_size=length)), dtype=kind)
        for _ in range(data.draw(st.integers(3, 6)))
    ]
    world = Round(name, plain, 1.0)
    exact = np.sum(np.array(plain, dtype=np.float64), axis=0)
    assert np.abs(world.open(world.total(), world.key()) - exact).max() <= world.params.error_bound(
        len(plain)
    )


@pytest.mark.parametrize(("name", "sites", "bound"), [("q32", 1000, 64.0), ("q32", 7, 1.0), ("q16", 28, 1.0)])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_the_extreme_sum_of_many_sites_does_not_wrap(name, sites, bound, kind):
    params = SUITE.parameters(name, bound, sites)
    vector = bound * np.tile(np.array([1, -1, 1], dtype=kind), 3)
    keys = [QuorumKey(params, i.to_bytes(32, "big"), b"") for i in range(sites)]
    uploads = [list(SITE.cipher(key, CONTEXT).encrypt(vector)) for key in keys]
    with SUITE.chunk_adder(params) as adder:
        total = [adder.add((upload[i] for upload in uploads), i, vector.size) for i in range(2)]
    secret = sum(QuorumKey(params, i.to_bytes(32, "big"), b"").spend(b"")[0] for i in range(sites))
    opened = SITE.cipher(SumKey(params, secret, sites), CONTEXT).open_sum(total, vector.size, sites)
    assert np.abs(opened - sites * vector.astype(np.float64)).max() <= params.error_bound(sites)


@pytest.mark.parametrize("name", SETS)
def test_a_million_parameters_stay_within_the_bound_and_come_near_it(name):
    bound = SUITE.parameter_sets[name].bound
    plain = vectors(4, 1_000_000, bound)
    world = Round(name, plain)
    error = world.open(world.total(), world.key()) - np.sum(np.array(plain, dtype=np.float64), axis=0)
    largest, predicted = float(np.abs(error).max()), world.params.error_bound(4)
    assert largest <= predicted < 2 * largest
    # 16 from 64 coins, 1/12 from rounding, of each of four sites: the estimate is good to 0.1 %.
    assert np.std(error) * world.params.scale == pytest.approx(np.sqrt(4 * (16 + 1 / 12)), rel=0.005)
    assert abs(np.mean(error)) * world.params.scale < 0.05


def test_both_suites_open_to_the_same_sum():
    layout = Layout(parameters=20_000, metrics=3)
    rng = np.random.default_rng(3)
    plain = [
        build(layout, rng.normal(0, 0.1, 20_000).astype(np.float32), rng.uniform(0, 1, 3), 64.0)
        for _ in range(4)
    ]
    world = Round("q32", plain)
    quorum = split(layout, world.open(world.total(), world.key()), 4, world.params)
    other, params = suite("shared-key"), suite("shared-key").parameters("seal-4096-48")
    with (
        site_side("shared-key").cipher(study_key_side("shared-key").generate_key(params), b"") as cipher,
        other.chunk_adder(params) as adder,
    ):
        uploads = [list(cipher.encrypt(vector)) for vector in plain]
        total = [
            adder.add((one[i] for one in uploads), i, layout.length)
            for i in range(params.chunk_count(layout.length))
        ]
        shared = split(layout, cipher.open_sum(total, layout.length, 4), 4, params)
    tolerance = params.error_bound(4) + world.params.error_bound(4)
    assert np.abs(quorum.update - shared.update).max() <= tolerance
    assert np.abs(quorum.metrics - shared.metrics).max() <= tolerance
