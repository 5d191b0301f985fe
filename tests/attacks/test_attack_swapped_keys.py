"""The coordinator puts its own round keys into the plan in other members' names. Shares are then sealed to it, and t of
them are a key: it opens every update that is dealt under this plan, without a single colluding site. What stops it is
that a join is signed over its round key, and that each site looks at all of them before it encrypts.
"""

import numpy as np
import pytest
from kit_hospitals import LENGTH, updates

from cipherward.crypto import records
from cipherward.crypto.labels import Label
from cipherward.crypto.sealing import SealingKey
from cipherward.crypto.signing import record_digest, verify
from cipherward.errors import VerificationError
from cipherward.evaluation.threats.kit.parties import SITE
from cipherward.proto.v1 import coordinator_pb2 as cp
from cipherward.proto.v1 import round_pb2 as rp
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.site_agent.daemon.quorum.acknowledging import dealing_of
from cipherward.site_agent.daemon.quorum.protection import plan_context

VICTIM = "alpha"


def swapped_plan(world, updates, resign):
    """The plan with the coordinator's keys for all but the victim; the keys; and the plan's digest.

    ``resign``: who signs the changed joins; None leaves the old signatures there."""
    world.to_plan(1, updates)
    record = rp.PlanRecord.FromString(world.hub.records[1, cp.RECORD_KIND_PLAN].payload)
    keys = {}
    for place, signed in enumerate(record.joins):
        join = rp.Join.FromString(signed.payload)
        if join.site == VICTIM:
            continue
        keys[place] = SealingKey.generate()
        join.round_key = keys[place].public()
        if resign is None:
            changed = Signed(
                payload=join.SerializeToString(), signer=signed.signer, signature=signed.signature
            )
        else:
            changed = world.sign(resign, Label.JOIN, join)
            changed.signer = signed.signer
        record.joins[place].CopyFrom(changed)
    signed = world.put(1, cp.RECORD_KIND_PLAN, world.sign("hub", Label.PLAN_RECORD, record))
    return keys, record_digest(Label.PLAN_RECORD, signed)


def opened_by_the_coordinator(world, keys):
    """The victim's update, from shares that were sealed to the coordinator."""
    signed, chunks, sealed = world.hub.links[VICTIM].committed(1)
    plan = world.agents[VICTIM].study.plan(1)
    dealing = dealing_of(world.trust, plan, rp.Commit.FromString(signed.payload))
    shares = {place + 1: dealing.open(place, key, sealed[place]) for place, key in keys.items()}
    combined = next(SITE.combine(world.params, shares, plan.threshold, 1))
    with SITE.cipher(combined.key, plan_context(world.trust, plan)) as cipher:
        return cipher.open_sum(chunks, LENGTH, 1)


def test_unsigned_round_keys_open_every_update(make_hospitals, monkeypatch):
    """Control: joins are read without their signatures being checked."""

    def unchecked(signed, label, key, kind):
        return rp.Join.FromString(signed.payload) if label is Label.JOIN else verify(signed, label, key, kind)

    monkeypatch.setattr(records, "verify", unchecked)
    world = make_hospitals(4)
    trained = updates(world.names, 1)
    keys, plan = swapped_plan(world, trained, None)
    world.agents[VICTIM].upload.upload_and_commit(1, plan)
    error = np.abs(opened_by_the_coordinator(world, keys) - world.vector(trained[VICTIM])).max()
    assert error <= world.params.error_bound(1)


@pytest.mark.parametrize("signer", [None, "hub", VICTIM])
def test_nobody_encrypts_to_keys_that_their_owners_did_not_sign(make_hospitals, signer):
    world = make_hospitals(4)
    _, plan = swapped_plan(world, updates(world.names, 1), signer)
    for agent in world.each():
        with pytest.raises(VerificationError, match="the signature on a join"):
            agent.upload.upload_and_commit(1, plan)
        assert agent.link.committed(1) is None
        assert agent.study.journal.entry(1).attempt is None


def test_a_site_that_sees_another_key_in_its_own_name_says_so(make_hospitals):
    """A site whose signing key the coordinator has stolen still knows what it posted itself."""
    world = make_hospitals(4)
    world.to_plan(1, updates(world.names, 1))
    record = rp.PlanRecord.FromString(world.hub.records[1, cp.RECORD_KIND_PLAN].payload)
    join = rp.Join.FromString(record.joins[0].payload)
    join.round_key = SealingKey.generate().public()
    record.joins[0].CopyFrom(world.sign(VICTIM, Label.JOIN, join))
    signed = world.put(1, cp.RECORD_KIND_PLAN, world.sign("hub", Label.PLAN_RECORD, record))
    plan = record_digest(Label.PLAN_RECORD, signed)
    with pytest.raises(VerificationError, match="a join in this site's name that it did not post"):
        world.agents[VICTIM].upload.upload_and_commit(1, plan)
    assert world.agents[VICTIM].link.committed(1) is None
