"""Which closed round the study's model is of.

In the quorum suite a round may have a close record and no model: too few members answered, or so few reported that
all of them may lie. It was then given up, and the next round began from the model before, as that round's signed
record says. A site that opened the sum nevertheless, as an honest one among a few reporters can, goes back; a site
without a model takes over the one before.
"""

from __future__ import annotations

from collections import Counter

from cipherward.crypto.labels import Label
from cipherward.crypto.records import agreement_needed, verify_model_report
from cipherward.crypto.signing import record_digest, signer_name
from cipherward.crypto.suites.base import KeyLifetime
from cipherward.errors import VerificationError
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.round_pb2 import ModelReport
from cipherward.site_agent.daemon.admission import fetch_initial_weights
from cipherward.site_agent.daemon.study import Study
from cipherward.site_agent.journal.journal import Entry

REPORTS_A_SITE = 4
"""Reports read at the most, for each site of the roster: a site may have corrected its own."""


class Standing:
    """Of one study."""

    def __init__(self, study: Study) -> None:
        self._study = study

    def round(self, current_round: int, *, ended: bool) -> Entry | None:
        """The newest closed round whose model stands; None if the initial model does.

        ``current_round`` is the coordinator's; ``ended``: there will be no other. In the shared-key suite, and while
        a round's reports come in, it is the last closed round. Raises UnavailableError without the round records.
        """
        # Most often the first one looked at: the whole journal would be read again at every round.
        for number in range(self._study.row().transcript_round, 0, -1):
            entry = self._study.journal.entry(number)
            if entry.closing_record and not entry.aborted and self._stands(entry, current_round, ended=ended):
                return entry
        return None

    def _stands(self, entry: Entry, current_round: int, *, ended: bool) -> bool:
        trust = self._study.trust(entry.round)
        if trust.key_lifetime is not KeyLifetime.ATTEMPT:
            return True
        if entry.round < current_round:
            return self._opening_model(entry.round + 1) != self._opening_model(entry.round)
        if not ended:
            return True
        # No record follows the last round: what enough of U reported stands, as by the coordinator's own rule. It
        # takes no report any more, so that every site counts the same ones; this site's own counts if it is there.
        most = max(Counter(self.votes(entry).values()).values(), default=0)
        needed = agreement_needed(trust.manifest.colluders, len(entry.cohort))
        return most >= min(needed, len(entry.cohort))

    def _opening_model(self, round_number: int) -> bytes:
        return self._study.round_record(round_number)[0].model_digest

    def votes(self, entry: Entry) -> dict[str, bytes]:
        """The model that each member of the closed round's U reported after it, as far as it did.

        Reports with a bad signature, of other rounds or of sites outside U do not count.
        """
        study = self._study
        trust = study.trust(entry.round)
        close = record_digest(Label.CLOSE_RECORD, Signed.FromString(entry.closing_record or b""))
        votes: dict[str, bytes] = {}
        # Doubles and forgeries are passed over below; a stream without end is not.
        most = REPORTS_A_SITE * len(trust.sites)
        for signed in study.client.model_reports(study.name, entry.round, most):
            name = signer_name(signed)
            if name not in entry.cohort:
                continue
            try:
                report: ModelReport = verify_model_report(signed, trust, entry.round, name)
            except VerificationError as error:
                study.log.warning("a model report is refused", sender=name, error=str(error))
                continue
            if report.close_digest == close:
                votes[name] = report.model_digest
        return votes

    def go_back(self, standing: Entry | None) -> bool:
        """Give up a model that did not stand for the one before, of the round ``standing`` (None: the initial
        one). Returns whether that one is still here; if not, this site asks its peers for it."""
        study, site, row = self._study, self._study.site, self._study.row()
        given_up = study.journal.entry(row.model_round)
        if standing is None:
            trust = study.versions().trusts[0]
            before, number = trust.manifest.initial_weights_digest, 0
            if not site.models.path(before).exists():
                fetch_initial_weights(site, study.client, trust)
        else:
            before, number = self._opening_model(standing.round + 1), standing.round
            if not site.models.path(before).exists():
                return False
        site.studies.set_model(study.name, number, before)
        study.log.warning("the round was given up; back to the model before", round=given_up.round)
        study.journal.incident(
            given_up.round, "this site opened the sum, and too few others did: the round was given up"
        )
        return True
