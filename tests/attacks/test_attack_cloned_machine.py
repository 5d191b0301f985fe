"""A machine that was cloned, or restored to an earlier state, with its random generator: it draws the same bytes
again. Two updates under the same key and errors would show their difference to everybody. So keys, errors and shares
follow from the randomness *and* from what they are for: update, site, attempt and plan (hedged randomness).
"""

import os
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from kit_hospitals import updates

from cipherward.crypto.labels import Label, digest
from cipherward.crypto.quorum.sealed import Answering
from cipherward.crypto.randomness import hedged_key
from cipherward.crypto.sealing import SealingKey
from cipherward.crypto.suites.site_side import one_time_key_side
from cipherward.site_agent.daemon.quorum import protection


@contextmanager
def cloned_randomness():
    """The operating system gives the same bytes, however often it is asked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "urandom", lambda count: b"\x2a" * count)
        yield


class Recorder:
    """The suite's side at a site; keeps the keys that it makes. ``hedged=False`` makes them without the hedge."""

    def __init__(self, hedged):
        self.side, self.hedged, self.keys = one_time_key_side("quorum"), hedged, []
        self.cipher = self.side.cipher

    def generate_key(self, params, hedge):
        self.keys.append(self.side.generate_key(params, hedge if self.hedged else b""))
        return self.keys[-1]


def two_attempts(world, monkeypatch, cases, *, hedged=True):
    """What each case's attempt makes with the same randomness: (secret, key of its errors, shares, residues).

    A case is the name of the site, the plan, the attempt and the vector.
    """
    recorder = Recorder(hedged)
    monkeypatch.setattr(protection, "one_time_key_side", lambda suite: recorder)
    made = []
    for name, plan, attempt, vector in cases:
        content = digest(Label.FILE_DIGEST, vector.tobytes())
        site = world.agents[name].protection
        with cloned_randomness(), site.begin(world.trust, plan, attempt, content) as encryption:
            chunks = list(encryption.encrypt(vector))
        key = recorder.keys[-1]
        shares = key.deal(plan.threshold, len(plan.members))
        key._spent = False
        secret, errors = key.spend(protection.plan_context(world.trust, plan))
        made.append((secret, errors, shares, np.frombuffer(chunks[0], world.params.residue).astype(np.int64)))
    return made


def shown(world, first, second):
    """The difference of two uploads, centred modulo q, in units of the vector."""
    apart = (first[3] - second[3]) % world.params.modulus
    apart = np.where(apart > world.params.modulus // 2, apart - world.params.modulus, apart)
    return apart / world.params.scale


@pytest.fixture
def begun(make_hospitals):
    """A planned round, and two updates."""
    world = make_hospitals(3)
    world.to_plan(1, updates(world.names, 1))
    world.one, world.two = (world.vector(update) for update in updates("ab", 2).values())
    world.planned = world.agents["alpha"].study.plan(1)
    return world


def test_without_the_hedge_a_clone_shows_the_difference_of_two_updates(begun, monkeypatch):
    """Control: keys from the operating system's randomness alone."""
    plan = begun.planned
    cases = [("alpha", plan, 1, begun.one), ("alpha", plan, 2, begun.two)]
    first, second = two_attempts(begun, monkeypatch, cases, hedged=False)
    assert first[1:3] == second[1:3]
    difference = shown(begun, first, second)[: begun.one.size]
    assert np.abs(difference - (begun.one.astype(np.float64) - begun.two)).max() <= 1 / begun.params.scale


def test_a_clone_makes_other_keys_errors_and_shares(begun, monkeypatch):
    """Whatever differs: the update, the attempt, the plan, or the site (two hospitals set up from one image)."""
    plan = begun.planned
    cases = [
        ("alpha", plan, 1, begun.one),
        ("alpha", plan, 1, begun.two),
        ("alpha", plan, 2, begun.one),
        ("alpha", replace(plan, digest=bytes(32)), 1, begun.one),
        ("beta", plan, 1, begun.one),
    ]
    made = two_attempts(begun, monkeypatch, cases)
    for first, second in combinations(made, 2):
        # Independent coefficients are equal in about one place of fourteen.
        assert np.mean(first[0] == second[0]) < 0.2
        assert first[1] != second[1]
        for one, other in zip(first[2], second[2], strict=True):
            assert np.mean(np.frombuffer(one, "<u4") == np.frombuffer(other, "<u4")) < 0.01
        # As of two random residues, whose difference is q/4 on average.
        quarter = begun.params.modulus / 4 / begun.params.scale
        assert np.abs(shown(begun, first, second)).mean() == pytest.approx(quarter, rel=0.12)


def test_the_same_attempt_is_the_same_again(begun, monkeypatch):
    """Control: the cases above differ by what is hedged, and not because randomness slipped in elsewhere."""
    case = ("alpha", begun.planned, 1, begun.one)
    first, second = two_attempts(begun, monkeypatch, [case, case])
    assert first[1:3] == second[1:3]
    assert not shown(begun, first, second).any()


def test_a_clone_encrypts_no_two_answers_under_one_key():
    """Answers are encrypted with a fixed nonce: under one key, two would show their difference."""
    receiver = SealingKey.generate()
    vectors = [os.urandom(8192) for _ in range(2)]
    cases = [(vectors[0], b"\x01"), (vectors[1], b"\x01"), (vectors[0], b"\x02"), (vectors[0], b"\x01")]
    keystreams = []
    for vector, close in cases:
        answering = Answering(bytes(32), bytes(32), close * 32, ("alpha",), "alpha")
        with cloned_randomness():
            encrypted, sealed = answering.seal([receiver.public()], vector)
        assert answering.open(0, receiver, encrypted, sealed[0]) == vector
        keystreams.append(np.frombuffer(encrypted[:8192], np.uint8) ^ np.frombuffer(vector, np.uint8))
    *different, repeated = keystreams
    for one, other in combinations(different, 2):
        assert np.mean(one == other) < 0.02
    assert np.array_equal(repeated, keystreams[0])  # control: nothing but the hedge told them apart


def test_two_models_sealed_to_a_peer_have_different_keys():
    """The counter is the nonce: under one key the difference of two models would show."""
    named = (b"manifest", b"sender", b"receiver", b"round")
    with cloned_randomness():
        keys = {hedged_key(Label.RELAY_KEY, content, *named) for content in (b"model 1", b"model 2")}
        assert len(keys) == 2
        assert hedged_key(Label.RELAY_KEY, b"model 1", *named) in keys, "the randomness does repeat"
