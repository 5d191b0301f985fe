"""Whether what sites posted in a round, as the store has it, is what they signed and what was counted.

The plan record has copies of the joins, and the close record of the commits of U: these decide what a round was. The
posts are what sites and auditors are shown besides, so they must verify and agree. A post that no signed record
refers to can be removed without trace, but for the newest round, where the coordinator's own state names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cipherward.coordinator.rounds.state import State
from cipherward.coordinator.store.studies import ACKNOWLEDGEMENT, ANSWER, COMMIT, JOIN, REPORT, SUM_CHECK
from cipherward.crypto.history import Finding, Found, RoundEvidence, VerifiedRound, located
from cipherward.crypto.labels import Label
from cipherward.crypto.quorum_records import verify_acknowledgement, verify_answer, verify_sum_check
from cipherward.crypto.records import Closed, verify_join
from cipherward.crypto.signing import record_digest, signer_name, verify
from cipherward.errors import VerificationError
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.round_pb2 import PlanRecord

Posts = Mapping[str, Mapping[str, Signed]]
"""By kind, then by site."""


@dataclass(frozen=True, slots=True)
class PostCheck:
    """Of one round whose records hold; commits and reports were verified with them."""

    posts: Posts
    evidence: RoundEvidence
    verified: VerifiedRound

    def check(self, state: State) -> None:
        """``state``: of the study, not newer than the posts. Raises Found for the first post that is wrong."""
        known = {JOIN, COMMIT, REPORT, ACKNOWLEDGEMENT, ANSWER, SUM_CHECK}
        for kind in sorted(self.posts.keys() - known):
            raise self._found(f"the store has posts of an unknown kind {kind[:40]!r}")
        self._joins()
        self._of_the_quorum()
        if state.round == self.verified.number:
            made = {JOIN: state.joins, COMMIT: state.commits, REPORT: state.reports}
            for kind, sites in made.items():
                for site in sorted(set(sites) - self.posts.get(kind, {}).keys()):
                    raise self._found(f"the coordinator counted its {kind}, which is not in the store", site)

    def _found(self, what: str, site: str = "") -> Found:
        return Found(Finding(what, self.verified.trust.manifest.study, self.verified.number, site))

    def _joins(self) -> None:
        study, number, trust = self.verified.trust.manifest.study, self.verified.number, self.verified.trust
        posted = self.posts.get(JOIN, {})
        opening = self.evidence.opening
        if opening is None:
            if posted:
                raise self._found("sites joined it, and its round record is missing")
            return
        opened = record_digest(Label.ROUND_RECORD, opening)
        for site, signed in posted.items():
            with located(study, number, site):
                verify_join(signed, trust, opened, number, site)
        if self.evidence.plan is None:
            return
        plan = verify(
            self.evidence.plan, Label.PLAN_RECORD, trust.manifest.coordinator.signing_key, PlanRecord
        )
        for counted in plan.joins:
            site = signer_name(counted)
            if site not in posted:
                raise self._found("its join is in the plan record and missing from the store", site)
            if posted[site].payload != counted.payload:
                raise self._found("the plan record counts another join than the one it posted", site)

    def _of_the_quorum(self) -> None:
        """What members said in a round that has not been thrown away yet."""
        trust, plan, ending = self.verified.trust, self.verified.plan, self.verified.ending
        close = ending if isinstance(ending, Closed) else None

        def acknowledgement(signed: Signed, site: str) -> object:
            if plan is None:
                raise VerificationError("it acknowledged shares and the round has no plan")
            return verify_acknowledgement(signed, trust, plan, site)

        def answer(signed: Signed, site: str) -> object:
            if plan is None or close is None:
                raise VerificationError("it answered and the round is not closed")
            return verify_answer(signed, trust, plan, close.digest, site)

        def sum_check(signed: Signed, site: str) -> object:
            if plan is None or close is None:
                raise VerificationError("it checked the sum and the round is not closed")
            return verify_sum_check(signed, trust, plan, close.digest, close.record.sum_chunk_count, site)

        checks: dict[str, Callable[[Signed, str], object]] = {
            ACKNOWLEDGEMENT: acknowledgement,
            ANSWER: answer,
            SUM_CHECK: sum_check,
        }
        for kind, check in checks.items():
            for site, signed in self.posts.get(kind, {}).items():
                with located(trust.manifest.study, self.verified.number, site):
                    check(signed, site)
