"""The coordinator alters the encrypted sum. It needs no key for that: adding D x to a residue adds x to the opened
value, and neither the zero elements nor the constant see it. Collective verification does: c + 1 sites sign for every
chunk that it is the sum of the updates in the close record, so one of them is honest.
"""

from contextlib import suppress

import numpy as np
import pytest
from kit_hospitals import updates

from cipherward.crypto.labels import Label
from cipherward.crypto.quorum_records import checkers
from cipherward.crypto.signing import record_digest
from cipherward.errors import UnavailableError
from cipherward.proto.v1 import coordinator_pb2 as cp
from cipherward.proto.v1 import round_pb2 as rp
from cipherward.site_agent.daemon.quorum import checking

SHIFT = 2.0
ZERO = 1
"""The chunk behind the only chunk of values."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Sites wait a tenth of a second for a check instead of three seconds."""
    monkeypatch.setattr(checking, "WAIT_SECONDS", 0.1)
    monkeypatch.setattr(checking, "POLL_SECONDS", 0.01)


def altered(world, chunk=0):
    """A sum whose first value is larger by SHIFT; of the zero chunk, where that would be seen in the opening."""
    summed = world.total(1, world.names)
    residues = np.frombuffer(summed[chunk], world.params.residue).astype(np.int64)
    residues[0] = (residues[0] + round(SHIFT * world.params.scale)) % world.params.modulus
    summed[chunk] = residues.astype(world.params.residue).tobytes()
    return summed


def close_altered(world, chunk=0):
    world.to_acknowledge(1, world.trained)
    world.close(1, world.names, altered(world, chunk))


def make(make_hospitals, count=4, **manifest):
    world = make_hospitals(count, **manifest)
    world.trained = updates(world.names, 1)
    world.mean = np.mean(list(world.trained.values()), axis=0)
    return world


def error_of(world, name):
    return world.model(name) - world.mean


def check_of(world, name, *, right=(), wrong=()):
    """A sum check that a colluding site signs, whatever the sum is."""
    closed = world.hub.records[1, cp.RECORD_KIND_CLOSE]
    record = rp.SumCheck(
        manifest_digest=world.trust.digest,
        close_digest=record_digest(Label.CLOSE_RECORD, closed),
        round=1,
        site=name,
        right=right,
        wrong=wrong,
    )
    return world.sign(name, Label.SUM_CHECK, record)


def order(world, chunk=0):
    """The sites in the order in which they are to check the chunk."""
    closed = world.hub.records[1, cp.RECORD_KIND_CLOSE]
    return checkers(record_digest(Label.CLOSE_RECORD, closed), world.names, chunk)


def test_without_collective_verification_everybody_applies_it(make_hospitals):
    """Control: a study whose manifest says that sums are not verified."""
    world = make(make_hospitals, collective_verification=False)
    close_altered(world)
    for agent in world.each():
        agent.protection.unseal(1)
    world.release(1)
    for name in world.names:
        assert world.incidents(name) == []
        assert error_of(world, name)[0] == pytest.approx(SHIFT / 4, abs=1e-5)
        assert np.abs(error_of(world, name)[1:]).max() <= world.params.error_bound(4)


@pytest.mark.parametrize("chunk", [0, ZERO])
def test_every_site_names_the_altered_chunk_and_applies_nothing(make_hospitals, chunk):
    world = make(make_hospitals)
    close_altered(world, chunk)
    for agent in world.each():
        agent.protection.unseal(1)
    accusers = [
        name for name, signed in world.hub.checks.items() if rp.SumCheck.FromString(signed.payload).wrong
    ]
    assert sorted(accusers) == sorted(order(world, chunk)[:2])  # c + 1, as the close record chose them
    world.release(1)
    for name in world.names:
        assert not world.model(name).any()
        kept, refused = world.incidents(name)
        assert kept == f"chunk {chunk} of the sum is not the sum of the updates"
        assert f"chunk {chunk} of the sum of round 1" in refused


def test_withheld_checks_only_delay(make_hospitals, monkeypatch):
    """The coordinator shows no honest check of the altered chunk to a site that is not to check it. It waits; then
    it takes the others to be absent, adds the chunk up itself, and has found the alteration."""
    world = make(make_hospitals)
    close_altered(world)
    for agent in world.each():
        agent.protection.unseal(1)
    last = world.agents[order(world)[-1]]
    world.hub.show = lambda kind, receiver, message: None if kind == "check" else message
    with pytest.raises(UnavailableError, match="chunks of the sum of round 1 are not checked"):
        last.release.catch_up(1, 1)
    assert not world.model(last.name).any()
    assert last.study.row().transcript_round == 0  # it will try again
    monkeypatch.setattr(checking, "LEAST_TURN_SECONDS", 0.001)
    last.protection._checking._own_seconds = 0.0
    last.release.catch_up(1, 1)
    assert not world.model(last.name).any()
    assert world.incidents(last.name)[0] == "chunk 0 of the sum is not the sum of the updates"


def liars(world, count):
    """A site that is not to check the altered chunk, and ``count`` others that call it right."""
    *rest, victim = order(world)
    names = rest[:count]
    for name in names:
        world.hub.checks[name] = check_of(world, name, right=[0, ZERO])
    world.hub.show = lambda kind, receiver, message: (
        None if kind == "check" and message.signer.rpartition("/")[2] not in (*names, victim) else message
    )
    return world.agents[victim]


def test_c_colluders_cannot_vouch_for_it(make_hospitals):
    world = make(make_hospitals)
    close_altered(world)
    for agent in world.each():
        agent.protection.unseal(1)
    victim = liars(world, world.trust.manifest.colluders)
    with pytest.raises(UnavailableError, match="of 2 chunks of the sum of round 1 are not checked"):
        victim.release.catch_up(1, 1)
    assert not world.model(victim.name).any()


def test_more_than_c_can(make_hospitals):
    """Control: c + 1 liars are more than the study claims to withstand, and the altered sum is applied."""
    world = make(make_hospitals)
    close_altered(world)
    for agent in world.each():
        agent.protection.unseal(1)
    victim = liars(world, world.trust.manifest.colluders + 1)
    victim.release.catch_up(1, 1)
    assert error_of(world, victim.name)[0] == pytest.approx(SHIFT / 4, abs=1e-5)


def test_a_liar_that_calls_right_chunks_wrong_stops_nobody(make_hospitals):
    world = make(make_hospitals)
    world.to_answers(1, world.trained)
    liar = order(world)[0]
    world.hub.checks[liar] = check_of(world, liar, wrong=[0, ZERO])
    honest = [name for name in world.names if name != liar]
    # Whoever sees the accusation adds up the chunks itself and signs at once what it found. Only the first to look
    # can lack others' signatures.
    for name in honest[:-1]:
        with suppress(UnavailableError):
            world.release(1, [name])
    world.release(1, honest[-1:])
    world.release(1, honest)
    for name in honest:
        assert np.abs(error_of(world, name)).max() <= world.params.error_bound(4)
        assert world.incidents(name) == []
