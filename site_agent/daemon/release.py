"""Step 7 at a site: believe the close record, verify and open the sum, take the server step, report the
model."""

from __future__ import annotations

import numpy as np
from sqlalchemy import update

from cipherward.crypto.labels import Label
from cipherward.crypto.records import Closed, StudyTrust
from cipherward.crypto.shared_noise import realised_noise_multiplier
from cipherward.crypto.signing import record_digest
from cipherward.crypto.strategies import SHARED_NOISE
from cipherward.crypto.suites.base import KeyLifetime
from cipherward.crypto.suites.payload import OpenedSum, split
from cipherward.errors import (
    LimitError,
    PolicyError,
    ProtocolError,
    VerificationError,
)
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.coordinator_pb2 import RecordKind
from cipherward.proto.v1.round_pb2 import ModelReport
from cipherward.proto.v1.study_pb2 import Manifest
from cipherward.site_agent.daemon.constants import training_constants
from cipherward.site_agent.daemon.protection import Protection
from cipherward.site_agent.daemon.study import Study
from cipherward.site_agent.daemon.sums import Sums
from cipherward.site_agent.state.studies import StudyRow
from cipherward.site_agent.state.tables import studies
from cipherward.site_agent.strategy.registry import strategy_of
from cipherward.site_agent.training.metrics import decode


def _noise(manifest: Manifest, contributors: int) -> dict[str, float]:
    """Where the sites share the noise: sigma as the ledger counts it, and as this sum has it."""
    if manifest.strategy.name != SHARED_NOISE:
        return {}
    realised = realised_noise_multiplier(manifest, contributors)
    return {"promised_noise": manifest.dp.noise_multiplier, "realised_noise": round(realised, 4)}


class Release:
    """Ends rounds: the transcript goes on with each, the model with those whose sum this site could
    verify."""

    def __init__(self, study: Study, protection: Protection) -> None:
        self._study, self._protection = study, protection
        self._sums = Sums(study)
        self._reported: tuple[int, bytes] | None = None

    def catch_up(self, target: int, newest: int) -> None:
        """Settle all ended rounds up to ``target``, oldest first. Old sums are never replayed: only that of
        ``newest``, the coordinator's current round, may still be fetched.

        Stops at the first round that has no ending record yet. Raises VerificationError for a record that
        does not continue the transcript.
        """
        for round_number in range(self._study.row().transcript_round + 1, target + 1):
            ending = self._study.closing(round_number)
            if ending is None:
                return
            if isinstance(ending, Closed):
                self._check_included(round_number, ending)
                if round_number == newest and self._applies(round_number):
                    self._apply_or_settle(round_number, ending)
                    self._protection.forget(round_number)
                    continue
            else:
                self._study.log.warning("round aborted", round=round_number, reason=ending.record.reason)
            self._study.settle_without_model(round_number, ending)
            self._protection.forget(round_number)

    def _check_included(self, round_number: int, closed: Closed) -> None:
        """A commit that counts must be ours; one that does not is only worth a warning."""
        entry = self._study.journal.entry(round_number)
        name = self._study.site.name
        ours = [item for item in closed.record.contributions if item.site == name]
        if ours:
            posted = entry.commit_record
            # verify_close has checked our signature: a commit that we do not know of means that our state
            # is a restored backup, or that the key is used elsewhere.
            if posted is None or Signed.FromString(posted).payload != ours[0].commit.payload:
                self._study.journal.incident(
                    round_number, "the close record counts a commit that this site's journal does not have"
                )
                raise VerificationError(
                    f"round {round_number} counts a commit of this site that its journal does not have",
                    why="the site's state is an older copy, or its signing key is used elsewhere",
                    fix="Restore the newest backup of the site's folder",
                )
        elif entry.commit_record is not None:
            reason = self._why_left_out(round_number, entry.commit_record)
            self._study.log.warning(
                "this site's update was left out of the sum", round=round_number, reason=reason
            )
            self._study.journal.incident(
                round_number, f"this site committed and was left out of the sum: {reason}", closed.signed
            )

    def _why_left_out(self, round_number: int, commit: bytes) -> str:
        """What a site can know of it: whether the coordinator has the commit, and what that means in the suite."""
        study = self._study
        shown = study.client.record(study.name, round_number, RecordKind.RECORD_KIND_COMMIT)
        if shown is None or shown.payload != Signed.FromString(commit).payload:
            return "the coordinator does not have the commit, it came too late"
        if study.trust(round_number).key_lifetime is KeyLifetime.ATTEMPT:
            return "the coordinator has the commit; other members did not open the shares that came with it"
        return "the coordinator has the commit, and no rule of the suite lets it leave one out"

    def _applies(self, round_number: int) -> bool:
        record, _ = self._study.round_record(round_number)
        return bool(record.model_digest == self._study.row().model_digest)

    def _apply_or_settle(self, round_number: int, closed: Closed) -> None:
        try:
            self._apply(round_number, closed)
        except (VerificationError, LimitError, PolicyError) as error:
            # The record is true, its sum is not: the chain goes on and the model comes from peers, if they
            # have one.
            self._study.log.error("the sum is refused", round=round_number, error=str(error))
            self._study.journal.incident(round_number, f"the sum was refused: {error}", closed.signed)
            self._study.settle_without_model(round_number, closed)
        except ProtocolError as error:
            self._study.log.warning("too late for the sum", round=round_number, error=str(error))
            self._study.settle_without_model(round_number, closed)

    def _apply(self, round_number: int, closed: Closed) -> None:
        study, site = self._study, self._study.site
        trust = study.trust(round_number)
        if study.journal.entry(round_number).answered_close not in (None, closed.digest):
            raise VerificationError(
                f"the coordinator signed two close records for round {round_number} of {study.name}",
                why="this site answered another one, and applies no other sum",
                fix="Tell the consortium's admin; the second record is kept as evidence",
            )
        if len(closed.cohort) < site.policy.minimum_cohort:
            raise PolicyError(
                f"round {round_number} sums {len(closed.cohort)} updates",
                why=f"this hospital's policy wants at least {site.policy.minimum_cohort}",
            )
        opened = self._open(round_number, trust, closed)
        row = study.row()
        before = site.models.get(row.model_digest)
        strategy = strategy_of(trust.manifest)
        after = strategy.server_step(before, opened.update, trust.manifest, closed.cohort)
        figures = decode(opened.metrics, training_constants(trust.manifest, site.name))
        digest = site.models.put(after)
        entry = study.journal.entry(round_number)
        if entry.started and site.name not in closed.cohort:
            # Before the transaction, and idempotent: a crash between the two repeats it.
            study.mark_lost(round_number)
        with site.engine.begin() as connection:
            study.chain(connection, round_number, closed)
            study.journal.write_in(
                connection,
                round_number,
                model_digest=digest,
                loss=None if np.isnan(figures.loss) else figures.loss,
                accuracy=None if np.isnan(figures.accuracy) else figures.accuracy,
                patients=figures.patients,
            )
            connection.execute(
                update(studies)
                .where(studies.c.study == study.name)
                .values(model_round=round_number, model_digest=digest)
            )
        self._drop_former(row)
        study.outbox(round_number).discard()
        study.log.info(
            "round finished",
            round=round_number,
            contributors=len(closed.cohort),
            loss=round(figures.loss, 4),
            accuracy=round(figures.accuracy, 4),
            **_noise(trust.manifest, len(closed.cohort)),
        )

    def _drop_former(self, row: StudyRow) -> None:
        """The model before ``row``'s, which stays until the next round has one as well: a round that too few could
        open is given up, and the study goes back (``standing``)."""
        study, site = self._study, self._study.site
        if study.journal.entry(row.model_round).round_record is None:
            return  # the initial model, or one of a round that this site knows by its ending only
        former = study.round_record(row.model_round)[0].model_digest
        # An initial one stays: another study may be about to begin from it.
        initial = study.versions().trusts[0].manifest.initial_weights_digest
        if former not in {row.model_digest, initial, *site.studies.models_in_use()}:
            site.models.discard(former)

    def _open(self, round_number: int, trust: StudyTrust, closed: Closed) -> OpenedSum:
        total = self._sums.get(round_number, closed)
        vector = self._protection.open(round_number, closed, total)
        if not np.isfinite(vector).all():
            raise VerificationError("the opened sum is not finite")
        return split(self._study.layout(trust), vector, len(closed.cohort), trust.params)

    # Reports

    def report(self, round_number: int) -> None:
        """Tell the others the digest of the model that this site has after the round. Does nothing if it
        has none."""
        study, site = self._study, self._study.site
        row, entry = study.row(), study.journal.entry(round_number)
        if row.model_round != round_number or entry.closing_record is None or entry.aborted:
            return
        if self._reported == (round_number, row.model_digest):
            return
        close = record_digest(Label.CLOSE_RECORD, Signed.FromString(entry.closing_record))
        signed = site.sign(
            Label.MODEL_REPORT,
            ModelReport(
                manifest_digest=study.trust(round_number).digest,
                close_digest=close,
                round=round_number,
                site=site.name,
                model_digest=row.model_digest,
            ),
        )
        try:
            study.client.post_model_report(study.name, signed)
        except ProtocolError as error:
            study.log.info("the report was not needed", round=round_number, error=str(error))
        self._reported = (round_number, row.model_digest)
