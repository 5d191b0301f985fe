"""A site that refuses a plan takes no part in its round: it neither encrypts under it, nor acknowledges shares, nor
answers, whatever phase the coordinator says the round is in. Its answer could open what its hospital's policy, or a
revocation, says must stay closed."""

import pytest
from kit_hospitals import STUDY, updates

from cipherward.errors import PolicyError
from cipherward.proto.v1 import coordinator_pb2 as cp
from cipherward.site_agent.daemon.study_loop import StudyLoop

LATER = (cp.PHASE_ACKNOWLEDGE, cp.PHASE_UNSEAL)


class Led(StudyLoop):
    """A site's loop, told by the test where the round is."""

    def __init__(self, agent):
        super().__init__(agent.study, lambda: None)
        self._protection = agent.protection
        self._upload._protection = agent.protection

    def at(self, phase, plan):
        if phase == cp.PHASE_UPLOAD:
            self._upload.upload_and_commit(1, plan)
            return
        self._act(
            cp.StudySnapshot(
                study=STUDY, state=cp.STUDY_STATE_RUNNING, round=1, phase=phase, plan_digest=plan
            )
        )


@pytest.fixture
def world(make_hospitals):
    return make_hospitals(4, collective_verification=False)


def led_to_close(world):
    """Round 1 up to its close record, by all but delta, whom nothing was asked of since it joined."""
    trained = updates(world.names, 1)
    plan = world.to_plan(1, trained)
    *others, refusing = world.names
    for agent in world.each(others):
        agent.upload.upload_and_commit(1, plan)
    for agent in world.each(others):
        agent.protection.acknowledge(1)
    world.close(1, others)
    return world.agents[refusing], plan


def test_a_member_that_accepts_the_plan_acknowledges_and_answers(world):
    agent, plan = led_to_close(world)
    for phase in LATER:
        Led(agent).at(phase, plan)
    assert agent.name in world.hub.acknowledgements and agent.name in world.hub.answers


@pytest.mark.parametrize("first", [cp.PHASE_UPLOAD, *LATER])
def test_a_member_that_refuses_it_does_neither(world, first):
    agent, plan = led_to_close(world)
    policy = agent.site.policy
    object.__setattr__(agent.site, "policy", policy.model_copy(update={"minimum_cohort": 5}))
    with pytest.raises(PolicyError, match="the plan names 4 sites"):
        Led(agent).at(first, plan)
    # Refused is refused, also for an agent that was started again with another policy.
    object.__setattr__(agent.site, "policy", policy)
    for phase in (cp.PHASE_UPLOAD, *LATER):
        Led(agent).at(phase, plan)
    assert agent.name not in world.hub.acknowledgements and agent.name not in world.hub.answers
    assert agent.link.committed(1) is None
    assert "the plan names 4 sites" in agent.study.journal.entry(1).skipped
