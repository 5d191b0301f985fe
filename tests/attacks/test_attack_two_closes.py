"""The coordinator closes a round twice: it shows the true sum to one site, which adds up its chunks and signs for them,
and an altered one to the others. The signatures of the first must not vouch for the second: with one colluding site
they would make c + 1, and the others would apply a sum that no honest site has looked at.
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
ALTERED = 0
"""The chunk of values; chunk 1 is the zero chunk."""
COLLUDER, SHOWN = "delta", "alpha"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(checking, "WAIT_SECONDS", 0.1)
    monkeypatch.setattr(checking, "POLL_SECONDS", 0.01)


def ground(world, summed, wanted):
    """A close record over ``summed`` whose altered chunk ``wanted`` accepts the order of, by its time stamp."""
    record = rp.CloseRecord.FromString(world.close_record(1, world.names, summed).payload)
    while True:
        signed = world.sign("hub", Label.CLOSE_RECORD, record)
        if wanted(checkers(record_digest(Label.CLOSE_RECORD, signed), world.names, ALTERED)):
            return signed
        record.closed_at += 1


def altered(world, summed):
    residues = np.frombuffer(summed[ALTERED], world.params.residue).astype(np.int64)
    residues[0] = (residues[0] + round(SHIFT * world.params.scale)) % world.params.modulus
    return [residues.astype(world.params.residue).tobytes(), *summed[1:]]


def show(world, signed, summed):
    world.hub.cohort = tuple(world.names)
    for link in world.hub.links.values():
        link.sum = summed
    return world.put(1, cp.RECORD_KIND_CLOSE, signed)


def vouched(world, name, close):
    """The chunks that the site called right in the sum of that close record."""
    signed = world.hub.checks.get(name)
    record = rp.SumCheck() if signed is None else rp.SumCheck.FromString(signed.payload)
    return list(record.right) if record.close_digest == close else []


def test_checks_of_one_close_record_say_nothing_of_another(make_hospitals):
    world = make_hospitals(4)
    trained = updates(world.names, 1)
    world.to_acknowledge(1, trained)
    honest = world.total(1, world.names)
    wrong = altered(world, honest)
    show(world, ground(world, honest, lambda order: SHOWN in order[:2]), honest)
    world.agents[SHOWN].protection.unseal(1)  # answers, adds up, signs

    second = show(world, ground(world, wrong, lambda order: set(order[:2]) == {SHOWN, COLLUDER}), wrong)
    close = record_digest(Label.CLOSE_RECORD, second)
    for name in ("beta", "gamma", COLLUDER):
        world.agents[name].protection.unseal(1)
    # What the colluder found, it keeps to itself.
    lie = rp.SumCheck(
        manifest_digest=world.trust.digest, close_digest=close, round=1, site=COLLUDER, right=[0, 1]
    )
    world.hub.checks[COLLUDER] = world.sign(COLLUDER, Label.SUM_CHECK, lie)
    with suppress(UnavailableError):
        world.agents[SHOWN].release.catch_up(1, 1)
    assert ALTERED not in vouched(world, SHOWN, close)
    assert any("two close records" in one for one in world.incidents(SHOWN))
    for name in ("beta", "gamma"):
        with suppress(UnavailableError):
            world.agents[name].release.catch_up(1, 1)
        assert not world.model(name).any()


def test_a_chunk_is_added_up_anew_for_another_close_record(make_hospitals):
    """The same without an answer, which a site cannot give if shares did not open: nothing is carried over."""
    world = make_hospitals(4)
    world.to_acknowledge(1, updates(world.names, 1))
    honest = world.total(1, world.names)
    agent = world.agents[SHOWN]
    for summed, right in ((honest, True), (altered(world, honest), False)):
        signed = show(world, ground(world, summed, lambda order: SHOWN in order[:2]), summed)
        closed = agent.study.closing(1)
        agent.protection._checking.check_own_part(1, closed, agent.protection._sums.get(1, closed))
        assert (ALTERED in vouched(world, SHOWN, record_digest(Label.CLOSE_RECORD, signed))) is right
