"""Collective verification with what a site has: its own update's chunks come from its outbox, and are believed by the
close record's root like everybody's. Where they are gone or damaged, they are fetched like the others'."""

import pytest
from kit_hospitals import PARAMETERS, updates

from cipherward.crypto.labels import Label
from cipherward.crypto.quorum_records import checkers
from cipherward.crypto.signing import record_digest
from cipherward.errors import EnvironmentProblem, VerificationError
from cipherward.proto.v1 import coordinator_pb2 as cp
from cipherward.proto.v1 import round_pb2 as rp
from cipherward.site_agent.daemon.quorum.own_update import own_update


def noting(world, monkeypatch):
    """Every call for chunks is noted by whether it leaves the caller's own out."""
    world.asked = {name: set() for name in world.names}

    def noted(link):
        def update_chunks(study, number, indices, *, without_own):
            world.asked[link.name].add(without_own)
            return type(link).update_chunks(link, study, number, indices, without_own=without_own)

        return update_chunks

    for link in world.hub.links.values():
        monkeypatch.setattr(link, "update_chunks", noted(link), raising=False)


@pytest.fixture
def closed(make_hospitals, monkeypatch):
    """Four sites, and a round that is closed."""
    world = make_hospitals(4)
    world.trained = updates(world.names, 1)
    noting(world, monkeypatch)
    world.to_acknowledge(1, world.trained)
    signed = world.close(1, world.names)
    world.checker = checkers(record_digest(Label.CLOSE_RECORD, signed), world.names, 0)[0]
    return world


def finish(world):
    for agent in world.each():
        agent.protection.unseal(1)
    world.release(1)
    models = {world.model(name).tobytes() for name in world.names}
    assert len(models) == 1 and world.model("alpha").shape == (PARAMETERS,) and world.model("alpha").any()
    checks = {name: rp.SumCheck.FromString(signed.payload) for name, signed in world.hub.checks.items()}
    assert 0 in checks[world.checker].right
    assert not any(check.wrong for check in checks.values())
    assert not any(world.incidents(name) for name in world.names)


def chunks_file(world, name):
    (path,) = (world.agents[name].site.folder.root).rglob("attempt-1.chunks")
    return path


def test_a_site_does_not_fetch_what_it_has(closed):
    finish(closed)
    assert closed.asked[closed.checker] == {True}
    assert False not in set().union(*closed.asked.values())


@pytest.mark.parametrize("damage", ["gone", "short", "flipped"])
def test_what_is_damaged_is_fetched(closed, damage):
    path = chunks_file(closed, closed.checker)
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        content[7] ^= 1
        path.write_bytes(content[:-1] if damage == "short" else content)
    finish(closed)
    assert closed.asked.pop(closed.checker) == {False}
    assert False not in set().union(*closed.asked.values())


def test_what_changes_while_it_is_read_is_not_added_up(closed):
    """It is hashed whole, then read again chunk by chunk: another program may write to the file in between."""
    agent, path = closed.agents["beta"], chunks_file(closed, "beta")
    own = own_update(agent.study, 1, agent.study.closing(1))
    assert own.chunk(0) and own.chunk(1)
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(content)
    with pytest.raises(EnvironmentProblem, match="the outbox was changed"):
        own.chunk(0)
    assert own.chunk(1)


def test_a_site_outside_the_sum_fetches_all(make_hospitals, monkeypatch):
    """It is in the plan, so it checks; its own update is not in the sum, and must not be added to it."""
    world = make_hospitals(4)
    noting(world, monkeypatch)
    world.to_acknowledge(1, updates(world.names, 1))
    *others, outside = world.names
    closed = world.close(1, others)
    digest = record_digest(Label.CLOSE_RECORD, closed)
    left_out = world.agents[outside]
    assert own_update(left_out.study, 1, left_out.study.closing(1)) is None
    for agent in world.each():
        agent.protection.unseal(1)
    world.release(1)
    assert len({world.model(name).tobytes() for name in world.names}) == 1
    checks_some = any(outside in checkers(digest, world.names, index)[:2] for index in (0, 1))
    assert world.asked[outside] == ({False} if checks_some else set())


def test_a_coordinator_that_sends_a_sites_own_chunk_for_anothers(closed):
    """As one would that hopes it is counted twice, or that does not know that it was left out."""
    digest = record_digest(Label.CLOSE_RECORD, closed.hub.records[1, cp.RECORD_KIND_CLOSE])
    # Behind the last site's own chunk no other is expected, so that it would not be read.
    checker = next(name for name in checkers(digest, closed.names, 0)[:2] if name != closed.names[-1])
    link = closed.hub.links[checker]

    def all_the_same(study, number, indices, *, without_own):
        return type(link).update_chunks(link, study, number, indices, without_own=False)

    link.update_chunks = all_the_same
    with pytest.raises(VerificationError, match=f"a chunk of '{checker}' came for "):
        closed.agents[checker].protection.unseal(1)
    assert checker not in closed.hub.checks
