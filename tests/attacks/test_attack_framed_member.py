"""A dealer deals a wrong share to one member. It opens, so the member acknowledges it; the member's honest answer is
then wrong. The others' answers show that, and which it is, and the sum is opened without it. But whose fault it is
they cannot show: a site that blamed the member would blame the innocent.
"""

import numpy as np
import pytest
from kit_colluders import Colluders
from kit_hospitals import updates

from cipherward.crypto.quorum import shamir
from cipherward.crypto.quorum.key import QuorumKey

DEALER, FRAMED = "delta", "beta"


def framed_round(world, trained, dealer=DEALER):
    """A round up to its answers in which the dealer's share for the framed member is random."""
    number = 1
    plan = world.to_plan(number, trained)
    place = list(trained).index(FRAMED)
    deal = QuorumKey.deal

    def deal_wrongly(key, threshold, members):
        shares = deal(key, threshold, members)
        noise = np.random.default_rng(1).integers(0, shamir.PRIME, shamir.COEFFICIENTS, dtype="<u4")
        shares[place] = noise.tobytes()
        return shares

    for agent in world.each(trained):
        with pytest.MonkeyPatch.context() as patch:
            if agent.name == dealer:
                patch.setattr(QuorumKey, "deal", deal_wrongly)
            agent.upload.upload_and_commit(number, plan)
    for agent in world.each(trained):
        agent.protection.acknowledge(number)
    closed = world.close(number, list(trained))
    for agent in world.each(trained):
        agent.protection.unseal(number)
    return closed


def test_the_sum_is_opened_without_the_wrong_answer_and_nobody_is_blamed(make_hospitals):
    world = make_hospitals(4)
    trained = updates(world.names, 1)
    framed_round(world, trained)
    # Nobody could see it before the answers.
    for said in world.hub.acknowledgements.values():
        assert len(said.opened) == 4
        assert list(said.unopenable) == []
    world.release(1)
    for name in world.names:
        error = np.abs(world.model(name) - np.mean(list(trained.values()), axis=0)).max()
        assert error <= world.params.error_bound(4) / 4
        (incident,) = world.incidents(name)
        assert incident == (
            "the answers of beta do not fit the others: theirs, or a dealer's share to them, is wrong"
        )
    # The framed member is in the next round as before.
    trained = updates(world.names, 2)
    world.to_answers(2, trained)
    world.release(2)
    assert {world.agents[name].study.row().model_round for name in world.names} == {2}
    assert [len(world.incidents(name)) for name in world.names] == [1] * 4


def test_the_member_that_does_not_fit_is_innocent(make_hospitals):
    """Control: who took the located answer for its member's fault would be wrong: it is the sum of what it was
    dealt, and the commit that its dealer signed proves it."""
    world = make_hospitals(4)
    closed = framed_round(world, updates(world.names, 1))
    colluders = Colluders(world, FRAMED, 1)  # the framed member itself, which shows what it has
    _, answered = colluders.learn(world.hub.answers[FRAMED][-1], closed)
    assert answered == colluders.own(closed)[1]


def test_an_answer_that_is_not_located_keeps_the_sum_closed(make_hospitals, monkeypatch):
    """Control: interpolation through the first t answers, as if all were right. The wrong key is refused, and one
    dealer has stopped the round."""

    def first_answers(points, values, threshold, bound):
        secret, _ = shamir._fit(points, values, np.arange(threshold))
        if shamir._within(secret, bound):
            yield secret, ()

    monkeypatch.setattr(shamir, "_candidates", first_answers)
    world = make_hospitals(4)
    framed_round(world, updates(world.names, 1))
    before = {name: world.model(name).tobytes() for name in world.names}
    world.release(1)
    assert {name: world.model(name).tobytes() for name in world.names} == before
    assert all("no key" in world.incidents(name)[-1] for name in world.names)


def test_with_t_answers_a_wrong_one_stops_the_round_and_nothing_else(make_hospitals):
    """With n = t = 3 there is no answer to spare: the round is lost, no model changes, the next one works."""
    world = make_hospitals(3)
    framed_round(world, updates(world.names, 1), dealer="gamma")
    world.release(1)
    for name in world.names:
        assert not world.model(name).any()
        assert "the answers give no key of the sum" in world.incidents(name)[-1]
        assert not any(other in world.incidents(name)[-1] for other in world.names)
    world.to_answers(2, updates(world.names, 2))
    world.release(2)
    assert all(world.model(name).any() for name in world.names)
