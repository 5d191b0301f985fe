"""The coordinator replaces the shares of all dealers but one by seals of zero, made in their names. The members'
answers then add up to the key of that one dealer, and its update is open.

HPKE in base mode does not authenticate its sender: anybody can seal anything to a member's public round key, and
its ``info`` holds nothing that the coordinator does not know. What stops it is that a share must lie under the share
root in the dealer's *signed* commit (``check_share``).
"""

import numpy as np
import pytest
from kit_colluders import Colluders
from kit_hospitals import updates

from cipherward.crypto.quorum_records import SHARE_BYTES
from cipherward.crypto.records import verify_commit
from cipherward.errors import ProtocolError, UnavailableError
from cipherward.proto.v1 import coordinator_pb2 as cp
from cipherward.proto.v1 import round_pb2 as rp
from cipherward.site_agent.daemon.quorum import acknowledging
from cipherward.site_agent.daemon.quorum.acknowledging import dealing_of

VICTIM, COLLUDER = "alpha", "delta"


class ResealingCoordinator:
    """Hands out zeros for the shares of everybody but the victim."""

    def __init__(self, world):
        self.world = world
        self.plan = world.agents[COLLUDER].study.plan(1)
        self.keys = [join.round_key for join in self.plan.joins.values()]
        self.zeros = {}

    def __call__(self, kind, receiver, message):
        if kind != "share":
            return message
        commit = rp.Commit.FromString(message.commit.payload)
        if commit.site == VICTIM:
            return message
        if commit.site not in self.zeros:
            dealing = dealing_of(self.world.trust, self.plan, commit)
            self.zeros[commit.site] = dealing.seal(self.keys, [bytes(SHARE_BYTES)] * len(self.keys))
        sealed = self.zeros[commit.site][message.index]
        return cp.ShareMessage(
            sealed=sealed, index=message.index, inclusion=message.inclusion, commit=message.commit
        )


def attack(world, trained):
    """The victim's update, as the coordinator and one site see it. Raises UnavailableError if they cannot."""
    world.to_commit(1, trained)
    world.hub.show = ResealingCoordinator(world)
    for agent in world.each():
        agent.protection.acknowledge(1)
    closed = world.close(1, world.names)
    refused = []
    for agent in world.each():
        try:
            agent.protection.unseal(1)
        except ProtocolError as error:
            refused.append((agent.name, error))
    colluders = Colluders(world, COLLUDER, 1)
    answers = dict(colluders.learn(posted[-1], closed) for posted in world.hub.answers.values())
    _, chunks, _ = world.hub.links[VICTIM].committed(1)
    return colluders.open(answers, chunks, contributors=1), refused


def test_without_the_signed_root_one_update_is_opened(make_hospitals, monkeypatch):
    """Control: ``check_share`` without its last step, the inclusion under the signed root."""

    def signed_only(message, trust, plan, receiver):
        return verify_commit(message.commit, trust, plan, message.commit.signer.rpartition("/")[2])

    monkeypatch.setattr(acknowledging, "check_share", signed_only)
    world = make_hospitals(4)
    trained = updates(world.names, 1)
    opened, refused = attack(world, trained)
    assert refused == []
    error = np.abs(opened - world.vector(trained[VICTIM])).max()
    assert error <= world.params.error_bound(1)


def test_members_open_no_share_that_its_dealer_did_not_sign_for(make_hospitals):
    world = make_hospitals(4)
    with pytest.raises(UnavailableError, match="0 answers are too few"):
        attack(world, updates(world.names, 1))
    for name in world.names:
        said = world.hub.acknowledgements[name]
        assert [item.site for item in said.opened] == [VICTIM]
        # The dealers did nothing wrong, and nobody says that they did.
        assert list(said.unopenable) == []


def test_the_coordinator_alone_can_make_seals_that_open(make_hospitals):
    """The seal by itself is no defence: the forged ones open, in the right dealer's name."""
    world = make_hospitals(3)
    world.to_commit(1, updates(world.names, 1))
    agent = world.agents[VICTIM]
    plan, number = agent.study.plan(1), 1
    signed, _, _ = world.hub.links["beta"].committed(number)
    dealing = dealing_of(world.trust, plan, rp.Commit.FromString(signed.payload))
    forged = dealing.seal([join.round_key for join in plan.joins.values()], [bytes(SHARE_BYTES)] * 3)
    assert dealing.open(0, agent.protection._secrets.of(number).key, forged[0]) == bytes(SHARE_BYTES)
