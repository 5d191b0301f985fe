"""A committed update offered again. The coordinator and one colluding site open a round's sum, say that the round was
aborted, and lead another without one site: if the others' updates are the same ones, the difference of the two sums
is the missing site's update. So a committed update is spent, whether it was opened or not (rule 5): sites train again.

And a key that encrypts twice shows the difference of its two updates to everybody (rule 1).
"""

import numpy as np
import pytest
from kit_colluders import Colluders
from kit_hospitals import PARAMETERS, updates

from cipherward.crypto.labels import Label
from cipherward.errors import ConflictError, UsageError, VerificationError
from cipherward.evaluation.threats.kit.parties import SITE, Parties, Round, vectors
from cipherward.proto.v1 import coordinator_pb2 as cp
from cipherward.proto.v1 import round_pb2 as rp
from cipherward.site_agent.daemon.participation import Participation
from cipherward.site_agent.ledger.chain import Kind

VICTIM, COLLUDER = "alpha", "delta"


def charged(agent):
    """Rounds for which its ledger has spent budget."""
    return [entry.round for _, entry in agent.site.ledger.entries() if entry.kind is Kind.RESERVE]


def opened_by_colluders(world, number, closed):
    colluders = Colluders(world, COLLUDER, number)
    answers = dict(colluders.learn(posted[-1], closed) for posted in world.hub.answers.values())
    who = [item.site for item in rp.CloseRecord.FromString(closed.payload).contributions]
    return colluders.open(answers, world.total(number, who), len(who))


def attack(world, first, second):
    """The difference of the sum of round 1, which is then said to be aborted, and of round 2 without the victim."""
    closed = world.to_answers(1, first)
    total = opened_by_colluders(world, 1, closed)
    world.abort(world.agents[VICTIM], 1)
    world.release(1)
    again = world.to_answers(2, {name: update for name, update in second.items() if name != VICTIM})
    return total - opened_by_colluders(world, 2, again)


def test_updates_kept_over_an_aborted_round_show_one_of_them(make_hospitals, monkeypatch):
    """Control: sites that spare themselves the training, and send what they trained for the aborted round."""
    world = make_hospitals(4)
    trained = updates(world.names, 1)
    train = Participation._train

    def keep(self, number):
        if number == 1:
            train(self, number)
            return
        vector = world.vector(trained[self._study.site.name])
        self._study.journal.write(number, update_digest=self._study.outbox(number).put_update(vector))

    monkeypatch.setattr(Participation, "_train", keep)
    stolen = attack(world, trained, trained)
    assert np.abs(stolen - world.vector(trained[VICTIM])).max() <= 2 * world.params.error_bound(4)


def test_after_an_aborted_round_sites_train_and_pay_again(make_hospitals):
    world = make_hospitals(4)
    first, second = updates(world.names, 1), updates(world.names, 2)
    stolen = attack(world, first, second)
    sums = [
        sum(world.vector(one[name]).astype(np.float64) for name in world.names) for one in (first, second)
    ]
    expected = sums[0] - sums[1] + world.vector(second[VICTIM])
    assert np.abs(stolen - expected).max() <= 2 * world.params.error_bound(4)
    assert np.abs(stolen - world.vector(first[VICTIM]))[:PARAMETERS].max() > 0.5
    for name in world.names[1:]:
        agent = world.agents[name]
        assert world.trainers[name].trained == 2
        one, two = (agent.study.journal.entry(number) for number in (1, 2))
        assert one.update_digest != two.update_digest
        # The first update is not even there any more, and its privacy loss stays counted.
        assert not agent.site.folder.outbox(agent.study.name, 1).exists()
        assert charged(agent) == [1, 2]


def test_a_committed_update_gets_no_new_attempt_and_no_other_plan(make_hospitals):
    world = make_hospitals(4)
    plan = world.to_plan(1, updates(world.names, 1))
    agent = world.agents[VICTIM]
    agent.upload.upload_and_commit(1, plan)
    before = agent.link.committed(1)
    with pytest.raises(ConflictError, match="committed"):
        agent.study.journal.next_attempt(1)
    # Asked again, also after a restart, it sends the same bytes.
    world.restart(VICTIM).upload.upload_and_commit(1, plan)
    assert agent.link.committed(1) == before
    assert [one.payload for one in agent.link.commits] == [before[0].payload] * 2
    # A plan without one of the others is another plan.
    record = rp.PlanRecord.FromString(world.hub.records[1, cp.RECORD_KIND_PLAN].payload)
    del record.joins[-1]
    world.put(1, cp.RECORD_KIND_PLAN, world.sign("hub", Label.PLAN_RECORD, record))
    with pytest.raises(VerificationError, match="second plan record"):
        world.agents[VICTIM].upload.upload_and_commit(1, b"another plan's digest, as the snapshot has it")
    assert len(agent.link.commits) == 2


def test_a_key_that_encrypts_twice_shows_the_difference():
    """Control, and the refusal: ``QuorumKey`` without the memory of being spent."""
    parties = Parties(3, length=40)
    made = Round(parties, parties.names)
    one, two = vectors("ab", 40, seed=1).values()
    key = SITE.generate_key(parties.params, b"")
    with SITE.cipher(key, made.context) as cipher:
        first = list(cipher.encrypt(one))
        with pytest.raises(UsageError, match="one update, once"):
            cipher.encrypt(two)
        key._spent = False
        second = list(cipher.encrypt(two))
    shown = difference(parties.params, first, second)[:40] / parties.params.scale
    assert np.abs(shown - (one.astype(np.float64) - two)).max() <= 1 / parties.params.scale
    # Under a fresh key the difference is as good as random.
    with SITE.cipher(SITE.generate_key(parties.params, b""), made.context) as cipher:
        other = difference(parties.params, first, list(cipher.encrypt(two)))
    assert np.abs(other).mean() == pytest.approx(parties.params.modulus / 4, rel=0.1)


def difference(params, first, second):
    """Of two uploads' first chunks, centred modulo q."""
    residues = [np.frombuffer(upload[0], params.residue).astype(np.int64) for upload in (first, second)]
    apart = (residues[0] - residues[1]) % params.modulus
    return np.where(apart > params.modulus // 2, apart - params.modulus, apart)
