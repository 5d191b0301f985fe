"""What can happen to a study. Signatures, digests and sizes are checked before a message becomes an event."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Restarted:
    """The coordinator came up again: its monotonic clock means something else, deadlines start anew."""


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time passed."""


@dataclass(frozen=True, slots=True)
class VersionAdded:
    """The rules have a newer version; it comes into force by itself."""


@dataclass(frozen=True, slots=True)
class SitesRevoked:
    """These sites' credentials are revoked; nothing is expected of them any more."""

    sites: frozenset[str]


@dataclass(frozen=True, slots=True)
class KeyStored:
    """Shared-key suite: the sealed key for ``site`` is stored."""

    site: str
    version: int


@dataclass(frozen=True, slots=True)
class JoinPosted:
    """Step 3: ``site`` is ready to upload."""

    site: str
    round: int
    record: bytes
    shared_key: bytes = b""


@dataclass(frozen=True, slots=True)
class CommitPosted:
    """Step 3: ``site`` committed an attempt whose chunks are all stored."""

    site: str
    round: int
    attempt: int
    record: bytes


@dataclass(frozen=True, slots=True)
class AcknowledgementPosted:
    """Step 4, quorum: ``site`` opened the shares addressed to it, but for those of ``unopenable``."""

    site: str
    round: int
    unopenable: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True)
class Summed:
    """Step 5: the sum over U is stored."""

    round: int
    root: bytes
    chunk_count: int


@dataclass(frozen=True, slots=True)
class SumFailed:
    """Step 5: the sum over U cannot be made."""

    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class AnswerPosted:
    """Step 6, quorum: ``site`` answered the one U of the round."""

    site: str
    round: int
    record: bytes


@dataclass(frozen=True, slots=True)
class ReportPosted:
    """Step 7: ``site`` has a model of digest ``model`` after the round."""

    site: str
    round: int
    model: bytes


@dataclass(frozen=True, slots=True)
class StudyAborted:
    """An operator ended the study."""

    reason: str


Event = (
    Restarted
    | Ticked
    | VersionAdded
    | SitesRevoked
    | KeyStored
    | JoinPosted
    | CommitPosted
    | AcknowledgementPosted
    | Summed
    | SumFailed
    | AnswerPosted
    | ReportPosted
    | StudyAborted
)
