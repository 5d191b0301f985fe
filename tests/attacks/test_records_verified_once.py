"""A site verifies a record when it sees its bytes for the first time, and not at every step of the round; a record of
other bytes is verified, whatever was believed before."""

import pytest
from kit_hospitals import updates
from sqlalchemy import update

from cipherward.errors import VerificationError
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.site_agent.daemon import study as module
from cipherward.site_agent.state.tables import rounds


@pytest.fixture
def counted(monkeypatch):
    calls = {"verify_plan": 0, "verify_round_record": 0}

    def counting(name):
        real = getattr(module, name)

        def verify(*args):
            calls[name] += 1
            return real(*args)

        monkeypatch.setattr(module, name, verify)

    for name in calls:
        counting(name)
    return calls


def test_once_a_round_and_site(make_hospitals, counted):
    world = make_hospitals(4)
    for number in (1, 2, 3, 4, 5):
        before = dict(counted)
        world.to_answers(number, updates(world.names, number))
        world.release(number)
        for name, count in counted.items():
            assert count - before[name] == len(world.names), name


def test_other_bytes_are_not_believed(make_hospitals):
    world = make_hospitals(4)
    world.to_plan(1, updates(world.names, 1))
    agent = world.agents["alpha"]
    agent.study.plan(1)
    assert agent.study.plan(1) is agent.study.plan(1)
    signed = Signed.FromString(agent.study.journal.entry(1).plan_record)
    signed.signature = bytes([signed.signature[0] ^ 1]) + signed.signature[1:]
    with agent.site.engine.begin() as connection:
        connection.execute(
            update(rounds).where(rounds.c.round == 1).values(plan_record=signed.SerializeToString())
        )
    for _ in range(2):
        with pytest.raises(VerificationError):
            agent.study.plan(1)
