"""What a site refuses to a site that the status list names: the key, the model, a plan with it."""

import time

import pytest

from cipherward.errors import IdentityError
from cipherward.ids import Identity, Role
from cipherward.proto.v1 import round_pb2 as rp
from cipherward.site_agent.daemon.revocation import require_site_in_force


def revoke(world, name):
    identity = Identity.make("heart", Role.SITE, name)
    newer = world.consortium.revoke(world.root, identity, "stolen", time.time())
    world.site.member.status.offer(newer.signed)


def receivers(world):
    return [rp.RelayItem.FromString(sent[0].item.payload).receiver for sent in world.coordinator.relayed]


def test_a_site_revoked_since_the_manifest_is_not_in_force_until_it_is_signed_anew(world):
    world.admit()
    require_site_in_force(world.site, world.trust, "gamma")
    revoke(world, "gamma")
    with pytest.raises(IdentityError, match=r"gamma.*is revoked, because stolen"):
        require_site_in_force(world.site, world.trust, "gamma")
    require_site_in_force(world.site, world.trust, "beta")
    with pytest.raises(IdentityError, match="not on the roster"):
        require_site_in_force(world.site, world.trust, "stranger")
    world.publish(world.manifest(signed_at=int(time.time()) + 1))
    require_site_in_force(world.site, world.trust, "gamma")


def test_the_shared_key_is_not_sealed_to_a_revoked_site_and_the_others_get_it(world):
    agent = world.admit()
    revoke(world, "beta")
    agent.keys.serve(world.trust, ["beta", "gamma"])
    assert receivers(world) == ["gamma"]


def test_the_model_is_not_sealed_to_a_revoked_site_and_the_others_get_it(world):
    agent = world.admit()
    world.to_close(agent, 1)
    agent.release.catch_up(1, 1)
    revoke(world, "beta")
    assert not agent.resync.serve(2, ["beta", "gamma"])
    assert receivers(world) == ["gamma"]


def test_nothing_is_encrypted_under_a_plan_with_a_revoked_site(world):
    agent = world.admit()
    world.open_round(agent, 1)
    agent.participation.train_and_join(1)
    _, digest = world.plan(agent, 1)
    revoke(world, "gamma")
    with pytest.raises(IdentityError, match=r"gamma.*is revoked"):
        agent.upload.upload_and_commit(1, digest)
    assert not agent.study.journal.entry(1).attempt
    assert not world.coordinator.uploads and not world.coordinator.commits
