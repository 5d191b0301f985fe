"""Two contributor sets for one round. The coordinator shows half of the honest members one close record, half of them
another that lacks one site, and c colluders answer both. Where both open, their difference is that site's update.

Both need t answers, and n - c honest members answer once each: so both open if 2(t - c) <= n - c, that is c >= 2t - n.
Rule 4 keeps c below that. That a member answers once is what its journal is for (rule 2).
"""

import shutil

import numpy as np
import pytest
from kit_colluders import Colluders
from kit_hospitals import updates

from cipherward.crypto import manifest_rules
from cipherward.crypto.labels import Label
from cipherward.crypto.manifest_rules import colluders_withstood, least_threshold
from cipherward.crypto.signing import record_digest
from cipherward.errors import ConflictError, UnavailableError, VerificationError
from cipherward.evaluation.threats.kit.parties import Parties, Round, vectors
from cipherward.proto.v1 import coordinator_pb2 as cp
from cipherward.proto.v1 import round_pb2 as rp

LENGTH = 6
PAIRS = [(n, t) for n in range(3, 8) for t in range(n // 2 + 1, n)]


@pytest.fixture
def bare_majority(monkeypatch):
    """Rule 4 weakened: any threshold above n/2 is accepted."""
    monkeypatch.setattr(manifest_rules, "least_threshold", lambda sites: sites // 2 + 1)


@pytest.fixture
def played(request, bare_majority):
    """A round of n sites with threshold t, and its two sets: all of J, and J without the first site."""
    n, t = request.param
    parties = Parties(n, length=LENGTH, threshold=t)
    made = Round(parties, parties.names)
    made.trained = vectors(parties.names, LENGTH, seed=n * 10 + t, bound=64.0)
    for name in parties.names:
        made.upload(name, made.trained[name])
    assert made.plan.threshold == t
    return made


def splits(played, colluders):
    """Every way to divide the honest members, by number: who answers the first set, and who the second."""
    honest = played.members[: len(played.members) - colluders]
    both = played.members[len(honest) :]
    for count in range(len(honest) + 1):
        yield honest[:count] + both, honest[count:] + both


@pytest.mark.parametrize("played", PAIRS, indirect=True, ids=str)
def test_at_2t_minus_n_colluders_a_second_set_opens(played):
    """Control: with so many colluders two sets open, and one site's update with them."""
    n, t = len(played.members), played.plan.threshold
    first, second = played.members, played.members[1:]
    answering, also = next(
        (one, two) for one, two in splits(played, 2 * t - n) if min(len(one), len(two)) >= t
    )
    receiver = played.members[-1] if 2 * t > n else None
    opened = [
        played.open_sum(who, members, receiver) for who, members in ((first, answering), (second, also))
    ]
    stolen = opened[0] - opened[1]
    assert np.abs(stolen - played.trained[first[0]]).max() <= 2 * played.parties.params.error_bound(n)


@pytest.mark.parametrize("played", PAIRS, indirect=True, ids=str)
def test_below_2t_minus_n_colluders_it_never_does(played):
    n, t = len(played.members), played.plan.threshold
    colluders = 2 * t - n - 1
    first, second = played.members, played.members[1:]
    for answering, also in splits(played, colluders):
        sets = [(first, answering), (second, also)]
        assert sum(len(members) >= t for _, members in sets) < 2
        for who, members in sets:
            if len(members) != t - 1:
                continue
            with pytest.raises(UnavailableError, match=f"{t - 1} answers are too few"):
                played.open_sum(who, members, played.members[-1])
            # Interpolated as if they were enough, they give no key of any sum.
            with pytest.raises(VerificationError):
                played.key_of_sum(who, members, played.members[-1], threshold=t - 1)


def test_rule_4_keeps_every_cohort_below_that():
    for n in range(3, 101):
        t = least_threshold(n)
        assert 2 * t - n > colluders_withstood(t, n) >= 1
        assert manifest_rules.effective_threshold(n // 2, n) == t


# The same at real agents


def two_sets(world, trained):
    """What the coordinator and epsilon see of the two sets. UnavailableError if one of them stays closed."""
    victim, colluder = "alpha", "epsilon"
    world.to_acknowledge(1, trained)
    sets = [list(world.names), [name for name in world.names if name != victim]]
    records = [world.close_record(1, who) for who in sets]
    shown = {"alpha": 0, "beta": 0, "gamma": 1, "delta": 1}
    world.close(1, sets[0])
    world.hub.show = lambda kind, receiver, message: records[shown[receiver]] if kind == "close" else message
    for name in shown:
        try:
            world.agents[name].protection.unseal(1)
        except VerificationError as error:
            # Half of them cannot get the sum that their record names. They have answered by then.
            assert "the sum is not the one" in str(error)
    colluders = Colluders(world, colluder, 1)
    opened = []
    for index, (who, record) in enumerate(zip(sets, records, strict=True)):
        members = [name for name, seen in shown.items() if seen == index]
        answers = dict(colluders.learn(world.hub.answers[name][-1], record) for name in members)
        answers.update([colluders.own(record)])
        opened.append(colluders.open(answers, world.total(1, who), len(who)))
    return opened[0] - opened[1]


def test_with_a_bare_majority_one_colluder_of_five_takes_an_update(make_hospitals, bare_majority):
    """Control: t = 3 of 5, so 2t - n = 1 colluder is enough."""
    world = make_hospitals(5, threshold=3)
    trained = updates(world.names, 1)
    stolen = two_sets(world, trained)
    assert np.abs(stolen - world.vector(trained["alpha"])).max() <= 2 * world.params.error_bound(5)


def test_with_the_threshold_of_rule_4_it_does_not(make_hospitals):
    world = make_hospitals(5)
    with pytest.raises(UnavailableError, match="3 answers are too few"):
        two_sets(world, updates(world.names, 1))


def test_a_threshold_below_rule_4_is_refused_by_the_sites(make_hospitals):
    with pytest.raises(VerificationError, match="the threshold t is 3"):
        make_hospitals(5, threshold=3, colluders=0)


# A member answers one U, ever


@pytest.fixture
def answered(make_hospitals):
    """alpha has answered the first of two close records, and the coordinator shows the second."""
    world = make_hospitals(4)
    world.to_acknowledge(1, updates(world.names, 1))
    world.before = world.folder / "before"
    world.agents["alpha"].site.engine.dispose()  # so that the copy is whole
    shutil.copytree(world.folder / "alpha", world.before)
    world.close(1, world.names)
    world.agents["alpha"].protection.unseal(1)
    world.kept = world.agents["alpha"].protection._secrets.of(1)
    world.close(1, world.names[:3])
    return world


def answers_of(world):
    found = world.hub.answers["alpha"]
    return [rp.Answer.FromString(posted.record.payload).close_digest for posted in found]


def with_key(agent, secret):
    """The round's key and shares, as if they had survived; no answer."""
    agent.protection._secrets.fresh(1, 60.0)
    held = agent.protection._secrets.of(1)
    held.key, held.shares = secret.key, secret.shares
    return agent


def test_another_set_is_refused_and_the_same_answer_is_repeated(answered):
    agent, first = answered.agents["alpha"], answers_of(answered)
    with pytest.raises(VerificationError, match="twice"):
        agent.protection.unseal(1)
    assert answers_of(answered) == first
    answered.close(1, answered.names)
    agent.protection.unseal(1)
    one, two = answered.hub.answers["alpha"]
    assert one == two


@pytest.mark.parametrize("disk", ["own", "restored backup"])
def test_after_a_restart_there_is_no_second_answer(answered, disk):
    """The round key is not on disk: a member that restarts is a dropout, whatever its disk remembers."""
    if disk == "restored backup":
        roll_back(answered)
    first = answers_of(answered)
    answered.restart("alpha").protection.unseal(1)
    assert answers_of(answered) == first
    for path in (answered.folder / "alpha").rglob("*"):
        assert not (path.is_file() and answered.kept.key.to_bytes()[:32] in path.read_bytes()), path


def test_even_if_the_round_key_survived_the_journal_would_refuse(answered):
    first = answers_of(answered)
    agent = with_key(answered.restart("alpha"), answered.kept)
    with pytest.raises(ConflictError, match="on record"):
        agent.protection.unseal(1)
    assert answers_of(answered) == first


def test_without_the_journal_it_would_answer_twice(answered):
    """Control: key and shares survive and the journal is an older copy, which the claim excludes."""
    roll_back(answered)
    agent = with_key(answered.restart("alpha"), answered.kept)
    agent.protection.unseal(1)
    second = record_digest(Label.CLOSE_RECORD, answered.hub.records[1, cp.RECORD_KIND_CLOSE])
    first, again = answers_of(answered)
    assert again == second != first


def roll_back(world):
    world.agents["alpha"].site.engine.dispose()
    shutil.rmtree(world.folder / "alpha")
    shutil.copytree(world.before, world.folder / "alpha")
