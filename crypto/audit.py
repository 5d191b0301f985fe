"""What an audit found of one study, whoever keeps the evidence: a coordinator's store, or a site's journal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cipherward.crypto.history import Finding, RoundEvidence, VerifiedRound
from cipherward.crypto.records import Closed, StudyTrust

NOT_KEPT = "its updates are no longer kept"


@dataclass
class StudyAudit:
    """What was found of one study."""

    study: str
    versions: int = 0
    suite: str = ""
    closed: int = 0
    aborted: int = 0
    in_progress: int = 0
    """The round that has begun and not ended; 0 if there is none."""
    joins: int = 0
    commits: int = 0
    reports: int = 0
    ended: int = 0
    transcript: bytes = b""
    """After the last round that ended: what sites show too."""
    added: list[int] = field(default_factory=list)
    """Rounds whose sum was recomputed."""
    not_added: dict[str, list[int]] = field(default_factory=dict)
    """Closed rounds whose sum was not recomputed, by the reason."""
    left_out: list[tuple[int, str]] = field(default_factory=list)
    """Round and site: it committed and is not in U (quorum: its shares did not open, or too late)."""
    not_reported: list[tuple[int, str]] = field(default_factory=list)
    """Round and site: it is in U, and there is no model report of it. A site need not report; no signed record says
    that it did."""
    finding: Finding | None = None
    """The first thing that is wrong."""

    def begin(self, trusts: Sequence[StudyTrust], transcript: bytes) -> None:
        """The manifests hold. ``transcript``: before the first round."""
        self.versions, self.suite, self.transcript = len(trusts), trusts[0].manifest.suite.name, transcript

    def count(self, verified: VerifiedRound, evidence: RoundEvidence) -> None:
        """The next round's records hold."""
        closed = isinstance(verified.ending, Closed)
        self.closed += closed
        self.aborted += verified.ending is not None and not closed
        if verified.ending is None:
            self.in_progress = verified.number
        else:
            self.in_progress, self.ended = 0, verified.number
        self.joins += len(verified.plan.joins) if verified.plan else 0
        self.commits += len(verified.commits)
        self.reports += len(evidence.reports or ())
        if isinstance(verified.ending, Closed) and evidence.reports is not None:
            silent = [site for site in verified.ending.cohort if site not in evidence.reports]
            self.not_reported += [(verified.number, site) for site in silent]
        self.left_out += [(verified.number, site) for site in verified.left_out]
        self.transcript = verified.transcript
