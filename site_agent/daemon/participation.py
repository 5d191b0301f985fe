"""Steps 1 to 3 at a site: believe the opening, reserve the budget, train, journal the update, and join."""

from __future__ import annotations

import numpy as np

from cipherward.crypto.labels import Label
from cipherward.crypto.suites.payload import build, refuse_not_finite
from cipherward.errors import (
    CipherwardError,
    EnvironmentProblem,
    LateError,
    UnavailableError,
    VerificationError,
)
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.round_pb2 import Join
from cipherward.site_agent.daemon.constants import training_constants
from cipherward.site_agent.daemon.hospital import reserve_round
from cipherward.site_agent.daemon.protection import Protection
from cipherward.site_agent.daemon.study import Study
from cipherward.site_agent.strategy.base import weights_of
from cipherward.site_agent.strategy.registry import strategy_of
from cipherward.site_agent.training.client import Cancellation, TaskRef

TRAIN_SECONDS = 7 * 86_400.0
"""A round's training may take hours; a job that is stuck ends with the round, or after a week."""


class Participation:
    """From the opening of a round to this site's join."""

    def __init__(self, study: Study, protection: Protection) -> None:
        self._study, self._protection = study, protection
        self._cancellation: tuple[int, Cancellation] | None = None

    def check_opening(self, round_number: int) -> None:
        """The round starts from this site's model and continues this site's transcript, or
        VerificationError."""
        record, _ = self._study.round_record(round_number)
        row = self._study.row()
        if record.previous_transcript != row.transcript:
            raise VerificationError(
                f"round {round_number} of {self._study.name} does not continue the transcript",
                why="the coordinator showed this site another history than it now signs",
            )
        if record.model_digest != row.model_digest:
            raise VerificationError(
                f"round {round_number} of {self._study.name} starts from another model than this site has",
                why=f"it names {record.model_digest.hex()[:16]}..., not {row.model_digest.hex()[:16]}...",
            )

    def train_and_join(self, round_number: int) -> None:
        """Do what is left to do until the join is posted; every step once, in this order.

        Raises PolicyError or BudgetError where the hospital does not allow it, PolicyError also if other
        patients were trained on than charged, LimitError for an update with NaN: the round is then marked as
        skipped and this site sits it out.
        """
        entry = self._study.journal.entry(round_number)
        if entry.skipped:
            return
        self.check_opening(round_number)
        try:
            if entry.update_digest is None:
                self._train(round_number)
        except (UnavailableError, LateError, EnvironmentProblem):
            raise  # tried again: a full disk gets room, a missing file comes back
        except CipherwardError as error:
            self._study.journal.write(round_number, skipped=str(error))
            raise
        self._join(round_number)

    def _train(self, round_number: int) -> None:
        study, site = self._study, self._study.site
        manifest = study.trust(round_number).manifest
        data_set = study.row().data_set
        study.journal.write(round_number, started=True)
        reserve_round(site, study.trust(round_number), data_set, round_number)
        study.log.info("reserved", round=round_number)
        study.log.info("training", round=round_number)
        cancellation = Cancellation()
        self._cancellation = (round_number, cancellation)
        try:
            outcome = site.trainer.train(
                TaskRef(manifest.task.name, manifest.task.code_digest),
                site.policy.dataset(data_set).source,
                training_constants(manifest, site.name),
                weights_of(site.models.get(study.row().model_digest), manifest),
                timeout=TRAIN_SECONDS,
                cancellation=cancellation,
            )
        finally:
            self._cancellation = None
        # The job loaded the source anew: its file may be another one than when the round was charged.
        site.ledger.check_trained(data_set, study.name, round_number, outcome.patients)
        refuse_not_finite(outcome.update, "the update")
        scaled = outcome.update * np.float32(strategy_of(manifest).upload_scale(manifest, site.name))
        trust = study.trust(round_number)
        vector = build(study.layout(trust), scaled, outcome.metrics, trust.params.bound)
        digest = study.outbox(round_number).put_update(vector)
        study.journal.write(round_number, update_digest=digest)
        study.log.info("trained", round=round_number, seconds=round(outcome.seconds, 3))

    def abandon(self, current_round: int | None) -> None:
        """Stop training for a round that is over (None: for any round). Called from another thread."""
        running = self._cancellation
        if running is not None and running[0] != current_round:
            running[1].cancel()

    def _join(self, round_number: int) -> None:
        study, site = self._study, self._study.site
        trust = study.trust(round_number)
        known = study.journal.entry(round_number).join_record
        signed = None if known is None else Signed.FromString(known)
        if signed is None or not self._protection.holds(round_number, signed):
            _, opening = study.round_record(round_number)
            signed = site.sign(
                Label.JOIN,
                Join(
                    manifest_digest=trust.digest,
                    round_record_digest=opening,
                    round=round_number,
                    site=site.name,
                    library=trust.params.library,
                    **self._protection.join_fields(trust, round_number),
                ),
            )
            study.journal.put_join(round_number, signed)
        study.client.post_join(study.name, signed)
        study.log.info("joined", round=round_number)
