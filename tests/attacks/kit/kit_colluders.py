"""The adversary of the attacks on real agents."""

from kit_hospitals import LENGTH

from cipherward.crypto.labels import Label
from cipherward.crypto.quorum.sealed import Answering
from cipherward.crypto.signing import record_digest
from cipherward.evaluation.threats.kit.parties import SITE
from cipherward.proto.v1 import round_pb2 as rp
from cipherward.site_agent.daemon.quorum.protection import plan_context


class Colluders:
    """The coordinator, which has all that was posted, and one site of J, which opens what is sealed to it."""

    def __init__(self, world, site, number):
        agent = world.agents[site]
        self.world, self.trust = world, agent.study.trust(number)
        self.plan = agent.study.plan(number)
        self.place = self.plan.places[site]
        self.secret = agent.protection._secrets.of(number)

    def learn(self, posted, closed):
        """A member's answer about that close record, opened: (its point, the sum of its shares)."""
        record = rp.Answer.FromString(posted.record.payload)
        close = record_digest(Label.CLOSE_RECORD, closed)
        answering = Answering(self.trust.digest, self.plan.digest, close, self.plan.members, record.site)
        key = posted.sealed_keys[self.place]
        vector = answering.open(self.place, self.secret.key, record.encrypted_vector, key)
        return self.plan.places[record.site] + 1, vector

    def own(self, closed):
        """What the colluding site answers about any close record: (its point, the sum of its shares)."""
        record = rp.CloseRecord.FromString(closed.payload)
        commits = [record_digest(Label.COMMIT, item.commit) for item in record.contributions]
        shares = [self.secret.shares[commit] for commit in commits]
        return self.place + 1, SITE.add_shares(self.trust.params, shares)

    def open(self, answers, chunks, contributors, threshold=None):
        """What the answers, by point, open of ``chunks``. Raises what the suite raises."""
        params, context = self.trust.params, plan_context(self.trust, self.plan)
        combined = next(SITE.combine(params, answers, threshold or self.plan.threshold, contributors))
        with SITE.cipher(combined.key, context, threads=1) as cipher:
            return cipher.open_sum(chunks, LENGTH, contributors)
