"""Members on slow links. The acknowledgements end a few seconds after t of them came: a member that had not begun by
then must still be able to answer, or each round would have no member to lose."""

import numpy as np
from kit_hospitals import updates

from cipherward.site_agent.daemon.quorum import answering


def test_a_member_too_late_to_acknowledge_answers_nevertheless(make_hospitals):
    world = make_hospitals(4, collective_verification=False)
    trained = updates(world.names, 1)
    world.to_commit(1, trained)
    *prompt, late = world.names
    for agent in world.each(prompt):
        agent.protection.acknowledge(1)
    world.close(1, world.names)
    # One of the prompt is lost after the close: with t = 3 of 4, the late one is needed.
    for agent in world.each([*prompt[1:], late]):
        agent.protection.unseal(1)
    assert late not in world.hub.acknowledgements and late in world.hub.answers
    world.release(1, [late])
    mean = np.mean(list(trained.values()), axis=0)
    assert np.abs(world.model(late) - mean).max() <= world.params.error_bound(4)


def test_shares_are_fetched_again_by_nobody_who_acknowledged(make_hospitals, monkeypatch):
    world = make_hospitals(4)
    world.to_acknowledge(1, updates(world.names, 1))
    world.close(1, world.names)
    monkeypatch.delattr(answering, "open_shares")
    for agent in world.each():
        agent.protection.unseal(1)
    assert sorted(world.hub.answers) == sorted(world.names)
