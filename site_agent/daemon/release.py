"""Step 7 at a site: believe the close record, verify and open the sum, take the server step, report the
model."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import update

from cipherward.crypto import merkle
from cipherward.crypto.labels import Label
from cipherward.crypto.records import StudyTrust
from cipherward.crypto.signing import record_digest
from cipherward.crypto.suites.payload import OpenedSum, split
from cipherward.crypto.suites.site_side import site_side
from cipherward.errors import (
    FormatError,
    LimitError,
    PolicyError,
    ProtocolError,
    UnavailableError,
    VerificationError,
)
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.round_pb2 import ModelReport
from cipherward.site_agent.daemon.constants import training_constants
from cipherward.site_agent.daemon.keys import SharedKeys
from cipherward.site_agent.daemon.study import Closed, Study
from cipherward.site_agent.state.tables import studies
from cipherward.site_agent.strategy.fedavg import server_step
from cipherward.site_agent.training.metrics import decode

STALL_CALLS = 5
"""Streams of the sum that may break without a new chunk before the round is tried again later."""


class Release:
    """Ends rounds: the transcript goes on with each, the model with those whose sum this site could
    verify."""

    def __init__(self, study: Study, keys: SharedKeys) -> None:
        self._study, self._keys = study, keys
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
                    continue
            else:
                self._study.log.warning("round aborted", round=round_number, reason=ending.record.reason)
            self._study.settle_without_model(round_number, ending)

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
            self._study.log.warning("this site's update was left out of the sum", round=round_number)
            self._study.journal.incident(round_number, "this site committed and was left out of the sum")

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
        if len(closed.cohort) < site.policy.minimum_cohort:
            raise PolicyError(
                f"round {round_number} sums {len(closed.cohort)} updates",
                why=f"this hospital's policy wants at least {site.policy.minimum_cohort}",
            )
        opened = self._open(round_number, trust, closed)
        before = site.models.get(study.row().model_digest)
        after = server_step(before, opened.update, trust.manifest, closed.cohort)
        figures = decode(opened.metrics, training_constants(trust.manifest, site.name))
        digest = site.models.put(after)
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
        study.outbox(round_number).discard()
        study.log.info(
            "round finished",
            round=round_number,
            contributors=len(closed.cohort),
            loss=round(figures.loss, 4),
            accuracy=round(figures.accuracy, 4),
        )
        entry = study.journal.entry(round_number)
        if entry.started and site.name not in closed.cohort:
            study.mark_lost(round_number)

    def _open(self, round_number: int, trust: StudyTrust, closed: Closed) -> OpenedSum:
        layout, params = self._study.layout(trust), trust.params
        contributors = len(closed.cohort)
        if closed.record.sum_chunk_count != params.chunk_count(layout.length):
            raise FormatError("the sum has another number of chunks than a model of this size")
        # The whole sum is verified before any of it is opened.
        chunks = list(self._chunks(round_number, closed))
        if merkle.root([merkle.leaf_hash(chunk) for chunk in chunks]) != closed.record.sum_root:
            raise VerificationError("the sum is not the one that the close record names")
        for index, chunk in enumerate(chunks):
            params.check_sum_chunk(chunk, index, layout.length)
        with site_side(trust.manifest.suite.name).cipher(self._keys.get(trust), b"") as cipher:
            vector: NDArray[np.float64] = cipher.open_sum(chunks, layout.length, contributors)
        if not np.isfinite(vector).all():
            raise VerificationError("the opened sum is not finite")
        return split(layout, vector, contributors, params)

    def _chunks(self, round_number: int, closed: Closed) -> Iterator[bytes]:
        """The sum's chunks, resumed where a stream breaks off."""
        layout = self._study.layout(self._study.trust(round_number))
        params = self._study.trust(round_number).params
        index, stalled = 0, 0
        while index < closed.record.sum_chunk_count:
            before = index
            try:
                for chunk in self._study.client.sum_chunks(self._study.name, round_number, index):
                    if chunk.index != index or index == closed.record.sum_chunk_count:
                        raise FormatError("the sum's chunks come out of order")
                    if len(chunk.data) != params.sum_chunk_bytes(index, layout.length):
                        raise FormatError(f"chunk {index} of the sum has {len(chunk.data)} bytes")
                    yield chunk.data
                    index += 1
            except UnavailableError:
                stalled = 0 if index > before else stalled + 1
                if stalled == STALL_CALLS:
                    raise
                continue
            if index == before:
                raise UnavailableError("the coordinator sends no chunks of the sum")

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
