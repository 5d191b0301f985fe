"""A study's history as an auditor verifies it: manifests, and the signed records of every round in their order.

Nothing here reads a database: a coordinator's store, a site's journal and an exported proof all come down to
``RoundEvidence``. The first thing that is wrong ends the verification, for what follows it cannot be trusted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from cipherward.crypto.labels import Label
from cipherward.crypto.manifest import verify_manifest, verify_successor
from cipherward.crypto.pki.anchor import Anchor
from cipherward.crypto.records import (
    Closed,
    Ending,
    Plan,
    StudyTrust,
    agreement_needed,
    verify_commit,
    verify_ending,
    verify_join,
    verify_model_report,
    verify_plan,
    verify_round_record,
)
from cipherward.crypto.signing import record_digest, signer_name, verify
from cipherward.crypto.transcript import transcript_start
from cipherward.errors import (
    CipherwardError,
    FormatError,
    OutageError,
    UnavailableError,
    VerificationError,
)
from cipherward.ids import Digest
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.round_pb2 import CloseRecord, Commit, PlanRecord, RoundRecord

MAX_VERSIONS = 1000


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong, and where: as near as the evidence allows."""

    what: str
    study: str = ""
    round: int = 0
    """0: not in a round."""
    site: str = ""
    chunk: int | None = None

    def __str__(self) -> str:
        parts = [self.study] if self.study else []
        parts += [f"round {self.round}"] if self.round else []
        parts += [f"site {self.site}"] if self.site else []
        parts += [f"chunk {self.chunk}"] if self.chunk is not None else []
        return f"{', '.join(parts)}: {self.what}" if parts else self.what


class Found(Exception):
    """Ends a verification at the first thing that is wrong."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(str(finding))
        self.finding = finding


@contextmanager
def located(study: str, number: int = 0, site: str = "", chunk: int | None = None) -> Iterator[None]:
    """Whatever does not verify inside is wrong at that place. Raises Found; what only does not answer passes."""
    try:
        yield
    except (OutageError, UnavailableError):
        raise
    except CipherwardError as error:
        raise Found(Finding(_said(error), study, number, site, chunk)) from error
    except (DecodeError, ValueError) as error:
        what = f"it cannot be read ({type(error).__name__})"
        raise Found(Finding(what, study, number, site, chunk)) from error


def _said(error: CipherwardError) -> str:
    return f"{error.what}, because {error.why}" if error.why else error.what


@dataclass(frozen=True, slots=True)
class RoundEvidence:
    """The signed records that somebody has of one round; None where there is none."""

    number: int
    opening: Signed | None
    plan: Signed | None
    ending: Signed | None
    commits: Mapping[str, Signed] = field(default_factory=dict)
    """As posted, by site; those in U stand in the close record besides."""
    reports: Mapping[str, Signed] | None = None
    """Model reports by site; None if whoever keeps the evidence does not get them."""


@dataclass(frozen=True, slots=True)
class VerifiedRound:
    """A round whose records hold."""

    number: int
    trust: StudyTrust
    opening: RoundRecord | None
    plan: Plan | None
    ending: Ending | None
    """None while the round is in progress."""
    commits: Mapping[str, Commit]
    transcript: Digest
    """After the round; for a round in progress, before it."""

    @property
    def left_out(self) -> tuple[str, ...]:
        """Sites of which there is a commit, and which are not in U; none unless the round was closed."""
        if not isinstance(self.ending, Closed):
            return ()
        return tuple(site for site in self.commits if site not in self.ending.cohort)


def verify_versions(signed: Sequence[Signed], anchor: Anchor) -> tuple[StudyTrust, ...]:
    """All versions of a study's manifest, oldest first: each signed by the root, each following from the one
    before it. Raises Found."""
    if not 1 <= len(signed) <= MAX_VERSIONS:
        raise Found(Finding(f"there are {len(signed)} versions of the manifest"))
    trusts: list[StudyTrust] = []
    for number, one in enumerate(signed, 1):
        with located(trusts[0].manifest.study if trusts else ""):
            trust = verify_manifest(one, anchor)
            if trusts:
                verify_successor(trusts[-1], trust)
            elif trust.manifest.version != number:
                raise FormatError(f"version {trust.manifest.version} of the manifest stands first")
            trusts.append(trust)
    return tuple(trusts)


class History:
    """Verifies the rounds of one study, oldest first."""

    def __init__(self, trusts: Sequence[StudyTrust]) -> None:
        """``trusts``: all versions, as ``verify_versions`` gives them."""
        self._trusts = trusts
        self.study = trusts[0].manifest.study
        self.transcript = transcript_start(self.study, trusts[0].digest)
        """After the rounds that were added and have ended."""
        self.ended = 0
        """The last of them."""
        self._number = 0
        self._models: set[bytes] | None = {trusts[0].manifest.initial_weights_digest}

    def trust(self, number: int) -> StudyTrust:
        """The version in force in that round: the newest that has begun."""
        begun = [trust for trust in self._trusts if trust.manifest.first_round <= number]
        return begun[-1] if begun else self._trusts[0]

    def add(self, evidence: RoundEvidence) -> VerifiedRound:
        """Verify the next round. Raises Found."""
        study, number = self.study, evidence.number
        if self.ended != self._number:
            what = f"its close or abort record is missing, and round {number} follows"
            raise Found(Finding(what, study, self._number))
        if number != self._number + 1:
            raise Found(Finding(f"round {number} came instead of it", study, self._number + 1))
        self._number = number
        trust = self.trust(number)
        opening, plan = self._opening(evidence, trust), self._plan(evidence, trust)
        commits = self._commits(evidence, trust, plan)
        ending = self._ending(evidence, trust, plan, commits)
        self._follow_model(evidence, trust, opening, ending)
        if ending is not None:
            self.transcript, self.ended = ending.transcript, number
        return VerifiedRound(number, trust, opening, plan, ending, commits, self.transcript)

    def _opening(self, evidence: RoundEvidence, trust: StudyTrust) -> RoundRecord | None:
        if evidence.opening is None:
            return None
        with located(self.study, evidence.number):
            opening = verify_round_record(evidence.opening, trust, evidence.number)
            if opening.previous_transcript != self.transcript:
                raise VerificationError(
                    "its round record does not continue the transcript",
                    why="it was signed upon another history",
                )
            if self._models is not None and opening.model_digest not in self._models:
                raise VerificationError(
                    "it starts from a model that neither the round before started from nor its sites reported"
                )
        return opening

    def _plan(self, evidence: RoundEvidence, trust: StudyTrust) -> Plan | None:
        if evidence.plan is None:
            return None
        number = evidence.number
        if evidence.opening is None:
            raise Found(Finding("it has a plan record and no round record", self.study, number))
        opened = record_digest(Label.ROUND_RECORD, evidence.opening)
        try:
            return verify_plan(evidence.plan, trust, opened, number)
        except (CipherwardError, DecodeError):
            self._name_joiner(evidence.plan, opened, trust, number)
            with located(self.study, number):
                raise

    def _name_joiner(self, plan: Signed, opened: bytes, trust: StudyTrust, number: int) -> None:
        """Raises Found if one site's join is what is wrong with the plan record."""
        try:
            record = verify(plan, Label.PLAN_RECORD, trust.manifest.coordinator.signing_key, PlanRecord)
        except VerificationError:
            return
        for join in record.joins:
            name = signer_name(join)
            with located(self.study, number, name if name in trust.sites else ""):
                verify_join(join, trust, opened, number, name)

    def _commits(self, evidence: RoundEvidence, trust: StudyTrust, plan: Plan | None) -> dict[str, Commit]:
        commits = {}
        for site, signed in evidence.commits.items():
            if plan is None:
                raise Found(
                    Finding("it committed and the round has no plan", self.study, evidence.number, site)
                )
            with located(self.study, evidence.number, site):
                commits[site] = verify_commit(signed, trust, plan, site)
        return commits

    def _ending(
        self, evidence: RoundEvidence, trust: StudyTrust, plan: Plan | None, commits: Mapping[str, Commit]
    ) -> Ending | None:
        if evidence.ending is None:
            return None

        def planned() -> Plan:
            if plan is None:
                raise VerificationError("it has a close record and no plan record")
            return plan

        number = evidence.number
        try:
            ending = verify_ending(evidence.ending, trust, number, self.transcript, planned)
        except (CipherwardError, DecodeError):
            self._name_site(evidence.ending, evidence.number, trust, plan)
            with located(self.study, number):
                raise
        if isinstance(ending, Closed):
            for item in ending.record.contributions:
                if item.site in commits and evidence.commits[item.site].payload != item.commit.payload:
                    what = "the close record counts another commit than the one it posted"
                    raise Found(Finding(what, self.study, number, item.site))
        return ending

    def _name_site(self, ending: Signed, number: int, trust: StudyTrust, plan: Plan | None) -> None:
        """Raises Found if one site's commit in the close record is what is wrong with it."""
        try:
            close = verify(ending, Label.CLOSE_RECORD, trust.manifest.coordinator.signing_key, CloseRecord)
        except VerificationError:
            return
        if plan is None or close.plan_digest != plan.digest:
            return
        for item in close.contributions:
            with located(self.study, number, item.site if item.site in trust.sites else ""):
                verify_commit(item.commit, trust, plan, item.site)

    def _follow_model(
        self,
        evidence: RoundEvidence,
        trust: StudyTrust,
        opening: RoundRecord | None,
        ending: Ending | None,
    ) -> None:
        """From which models the next round may start: this one's, or one that enough of U reported.

        A site may report again later, and up to c of them may lie: so c fewer than the coordinator needed.
        """
        if evidence.reports is None:
            self._models = None
            return
        votes: Counter[bytes] = Counter()
        for site, signed in evidence.reports.items():
            if not isinstance(ending, Closed):
                what = "it reported a model and the round is not closed"
                raise Found(Finding(what, self.study, evidence.number, site))
            with located(self.study, evidence.number, site):
                report = verify_model_report(signed, trust, evidence.number, site)
                if report.close_digest != ending.digest:
                    raise VerificationError("its model report is about another close record than this one")
            if site in ending.cohort:
                votes[report.model_digest] += 1
        colluders = trust.manifest.colluders
        members = len(ending.cohort) if isinstance(ending, Closed) else 0
        needed = max(1, min(agreement_needed(colluders, members), members) - colluders)
        if self._models is not None:
            kept = {opening.model_digest} if opening is not None else self._models
            self._models = kept | {model for model, count in votes.items() if count >= needed}
