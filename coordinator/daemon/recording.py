"""Carries out the state machine's effects inside the transaction that stores the state that led to them: what
the coordinator signed and what it remembers can never differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from cipherward.clock import Clock
from cipherward.coordinator.daemon.retention import Retention
from cipherward.coordinator.daemon.view import StudyView
from cipherward.coordinator.rounds.effects import (
    Discard,
    Effect,
    NoteUnopened,
    SignAbort,
    SignClose,
    SignPlan,
    SignRound,
    StartSum,
)
from cipherward.coordinator.store.database import Transaction
from cipherward.coordinator.store.studies import COMMIT, JOIN
from cipherward.crypto.labels import Label
from cipherward.crypto.records import verify_plan
from cipherward.crypto.signing import SigningKey, parse, record_digest
from cipherward.crypto.transcript import transcript_next
from cipherward.proto.v1.coordinator_pb2 import RECORD_KIND_CLOSE, RECORD_KIND_PLAN, RECORD_KIND_ROUND
from cipherward.proto.v1.round_pb2 import (
    AbortRecord,
    CloseRecord,
    Commit,
    Contribution,
    PlanRecord,
    RoundRecord,
)


@dataclass
class Afterwards:
    """What is left to do once the transaction is on disk. A crash may lose it: the state says which sum is
    owed, and stray blobs are swept at the next start."""

    sums: list[StartSum] = field(default_factory=list)
    blobs: list[str] = field(default_factory=list)


class Recorder:
    """Signs records with the coordinator's key and writes them."""

    def __init__(self, signing_key: SigningKey, signer: str, clock: Clock, retention: Retention) -> None:
        self._key, self._signer, self._clock, self._retention = signing_key, signer, clock, retention

    def perform(
        self, t: Transaction, view: StudyView, effects: Sequence[Effect], after: Afterwards
    ) -> StudyView:
        """Carry out ``effects`` in order; returns the view with the new records."""
        for effect in effects:
            match effect:
                case SignRound():
                    view = self._sign_round(t, view, effect)
                case SignPlan():
                    view = self._sign_plan(t, view, effect)
                case SignClose():
                    view = self._sign_close(t, view, effect)
                case SignAbort():
                    view = self._sign_abort(t, view, effect)
                case NoteUnopened():
                    t.studies.abort_round(view.name, effect.round, effect.reason)
                case StartSum():
                    after.sums.append(effect)
                case Discard():
                    trust = view.version(effect.round).trust
                    after.blobs += self._retention.end(t, view.name, trust, effect.round)
        return view

    def _sign_round(self, t: Transaction, view: StudyView, effect: SignRound) -> StudyView:
        record = RoundRecord(
            manifest_digest=view.version(effect.round).trust.digest,
            round=effect.round,
            model_digest=effect.model,
            previous_transcript=view.transcript,
            opened_at=int(self._clock.now()),
        )
        signed = self._key.sign(Label.ROUND_RECORD, record, self._signer)
        digest = record_digest(Label.ROUND_RECORD, signed)
        t.studies.add_record(view.name, effect.round, RECORD_KIND_ROUND, digest, signed)
        t.studies.open_round(view.name, effect.round, self._clock.now())
        return replace(view, round_record=digest, plan=None, close=None)

    def _sign_plan(self, t: Transaction, view: StudyView, effect: SignPlan) -> StudyView:
        joins = t.studies.round_posts(view.name, effect.round, JOIN)
        trust = view.version(effect.round).trust
        record = PlanRecord(
            manifest_digest=trust.digest,
            round_record_digest=view.round_record or b"",
            round=effect.round,
            joins=[joins[site] for site in effect.sites],
        )
        signed = self._key.sign(Label.PLAN_RECORD, record, self._signer)
        plan = verify_plan(signed, trust, record.round_record_digest, effect.round)
        t.studies.add_record(view.name, effect.round, RECORD_KIND_PLAN, plan.digest, signed)
        t.studies.plan_round(view.name, effect.round, self._clock.now())
        return replace(view, plan=plan)

    def _sign_close(self, t: Transaction, view: StudyView, effect: SignClose) -> StudyView:
        commits = t.studies.round_posts(view.name, effect.round, COMMIT)
        contributions = []
        for site in effect.contributors:
            commit = parse(commits[site].payload, Commit, "commit")
            contributions.append(
                Contribution(
                    site=site,
                    attempt=commit.attempt,
                    ciphertext_root=commit.ciphertext_root,
                    share_root=commit.share_root,
                    commit=commits[site],
                )
            )
        record = CloseRecord(
            manifest_digest=view.version(effect.round).trust.digest,
            plan_digest=view.plan.digest if view.plan else b"",
            round=effect.round,
            contributions=contributions,
            sum_root=effect.root,
            sum_chunk_count=effect.chunk_count,
            previous_transcript=view.transcript,
            closed_at=int(self._clock.now()),
        )
        signed = self._key.sign(Label.CLOSE_RECORD, record, self._signer)
        digest = record_digest(Label.CLOSE_RECORD, signed)
        t.studies.add_record(view.name, effect.round, RECORD_KIND_CLOSE, digest, signed)
        t.studies.close_round(view.name, effect.round, effect.contributors)
        return replace(view, close=digest, transcript=transcript_next(view.transcript, digest))

    def _sign_abort(self, t: Transaction, view: StudyView, effect: SignAbort) -> StudyView:
        record = AbortRecord(
            manifest_digest=view.version(effect.round).trust.digest,
            round=effect.round,
            reason=effect.reason,
            previous_transcript=view.transcript,
            aborted_at=int(self._clock.now()),
        )
        signed = self._key.sign(Label.ABORT_RECORD, record, self._signer)
        digest = record_digest(Label.ABORT_RECORD, signed)
        t.studies.add_record(view.name, effect.round, RECORD_KIND_CLOSE, digest, signed)
        t.studies.abort_round(view.name, effect.round, effect.reason)
        return replace(view, close=digest, transcript=transcript_next(view.transcript, digest))
