"""``audit verify``: all studies of a coordinator's store, from the root's signature to the last byte that is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cipherward.coordinator.audit.ciphertexts import Checked, Ciphertexts
from cipherward.coordinator.audit.posts import PostCheck
from cipherward.coordinator.audit.source import Gone, Source, StoredStudy
from cipherward.coordinator.daemon.manifests import METRIC_VALUES
from cipherward.crypto.audit import NOT_KEPT, StudyAudit
from cipherward.crypto.history import Finding, Found, History, VerifiedRound, located, verify_versions
from cipherward.crypto.pki.anchor import Anchor
from cipherward.crypto.records import Closed
from cipherward.crypto.suites.base import ChunkAdder, KeyLifetime
from cipherward.crypto.suites.payload import Layout
from cipherward.crypto.suites.registry import suite

Progress = Callable[[str, int, int, int], None]
"""Called with study, round, bytes read of the round, and all that are to be read."""


class Auditor:
    """Verifies studies of one store."""

    def __init__(
        self, source: Source, anchor: Anchor, progress: Progress, refuse_shared_key: str = ""
    ) -> None:
        """``refuse_shared_key``: why sums of the shared-key suite must not be added up on this machine, if so."""
        self._source, self._anchor, self._progress = source, anchor, progress
        self._refuse_shared_key = refuse_shared_key

    def audit(self, studies: Iterable[StoredStudy]) -> list[StudyAudit]:
        """One report for each of ``studies``, which the source gave. Raises EnvironmentProblem, or
        UnavailableError if a worker process fails."""
        return [self._audit(study) for study in studies]

    def _audit(self, stored: StoredStudy) -> StudyAudit:
        audit = StudyAudit(stored.study)
        try:
            with located(stored.study):
                manifests = self._source.manifests(stored.study)
            trusts = verify_versions(manifests, self._anchor)
            if trusts[0].manifest.study != stored.study:
                raise Found(Finding(f"its manifest is that of {trusts[0].manifest.study}", stored.study))
            history = History(trusts)
            audit.begin(trusts, history.transcript)
            self._check_head(stored, history, 0)
            for number in range(1, stored.round + 1):
                self._round(stored, history, number, audit)
            if history.ended < stored.ended:
                what = "its close or abort record is missing"
                raise Found(Finding(what, stored.study, history.ended + 1))
        except Found as found:
            audit.finding = found.finding
        return audit

    def _round(self, stored: StoredStudy, history: History, number: int, audit: StudyAudit) -> None:
        with located(stored.study, number):
            look = self._source.round(stored.study, number)
        verified = history.add(look.evidence)
        self._check_head(stored, history, number)
        audit.count(verified, look.evidence)
        PostCheck(look.posts, look.evidence, verified).check(stored.state)
        self._check_contributors(verified)
        self._ciphertexts(Ciphertexts(self._source, look, verified, _length(verified)), verified, audit)

    def _check_head(self, stored: StoredStudy, history: History, number: int) -> None:
        if number == stored.ended and history.transcript != stored.transcript:
            what = "the head of the transcript is not the hash of the records up to this round"
            raise Found(Finding(what, stored.study, number))

    def _check_contributors(self, verified: VerifiedRound) -> None:
        """Whether U is what the coordinator's own store says it must be."""
        if not isinstance(verified.ending, Closed):
            return
        study, number = verified.trust.manifest.study, verified.number
        for site in verified.ending.cohort:
            if site not in verified.commits:
                raise Found(Finding("its commit is missing from the store", study, number, site))
        # In the shared-key suite nothing but a commit decides who is in U.
        if verified.trust.key_lifetime is KeyLifetime.STUDY and verified.left_out:
            what = "it committed in time and was left out of the sum"
            raise Found(Finding(what, study, number, verified.left_out[0]))

    def _ciphertexts(self, ciphertexts: Ciphertexts, verified: VerifiedRound, audit: StudyAudit) -> None:
        number, reason = verified.number, self._not_addable(verified)

        def adder() -> ChunkAdder:
            trust = verified.trust
            return suite(trust.manifest.suite.name).chunk_adder(trust.params)

        def progress(done: int, everything: int) -> None:
            self._progress(audit.study, number, done, everything)

        try:
            checked = ciphertexts.check(None if reason else adder, progress)
        except Gone:
            checked = Checked(updates=False, total=False, added=False)
        if checked.added:
            audit.added.append(number)
        elif isinstance(verified.ending, Closed):
            if not checked.updates:
                reason = NOT_KEPT
            elif not checked.total:
                reason = "its sum is no longer kept"
            audit.not_added.setdefault(reason, []).append(number)

    def _not_addable(self, verified: VerifiedRound) -> str:
        trust = verified.trust
        if trust.key_lifetime is KeyLifetime.STUDY and self._refuse_shared_key:
            return self._refuse_shared_key
        wanted, installed = trust.manifest.suite.library, trust.params.library
        if wanted != installed:
            return f"it was made with {wanted}, and this machine has {installed}"
        return ""


def _length(verified: VerifiedRound) -> int:
    return Layout(verified.trust.manifest.parameter_count, METRIC_VALUES).length
