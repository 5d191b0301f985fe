"""Where a study stands, and the rules from its manifest that decide where it goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Life(StrEnum):
    """Of a study."""

    RUNNING = "running"
    FINISHED = "finished"
    ABORTED = "aborted"


class Phase(StrEnum):
    """Of the current round. KEYS is the shared-key suite's, ACKNOWLEDGE and UNSEAL are the quorum suite's."""

    KEYS = "keys"
    OPEN = "open"
    UPLOAD = "upload"
    ACKNOWLEDGE = "acknowledge"
    SUM = "sum"
    UNSEAL = "unseal"
    RELEASE = "release"


@dataclass(frozen=True, slots=True)
class Rules:
    """What one version of a manifest lays down for rounds. Times are seconds."""

    version: int
    first_round: int
    rounds: int
    roster: tuple[str, ...]
    quorum: bool
    minimum_cohort: int
    threshold: int
    colluders: int
    join_window: float
    upload: float
    acknowledge: float
    unseal: float
    verify: float


@dataclass(frozen=True, slots=True)
class StudyRules:
    """All versions so far, oldest first."""

    versions: tuple[Rules, ...]

    def at(self, round_number: int) -> Rules:
        """The version in force in a round: the newest that has begun."""
        in_force = self.versions[0]
        for version in self.versions[1:]:
            if version.first_round <= round_number:
                in_force = version
        return in_force


@dataclass(frozen=True, slots=True)
class Joining:
    """A site's join: the digest of the record, and of the shared key it holds (quorum: empty)."""

    record: bytes
    shared_key: bytes = b""


@dataclass(frozen=True, slots=True)
class Committed:
    """A site's commit: which attempt, and the digest of the record."""

    attempt: int
    record: bytes


@dataclass(frozen=True, slots=True)
class State:
    """One study. ``since`` is when the phase began, in monotonic seconds; it is set anew after a restart."""

    round: int
    phase: Phase
    since: float
    model: bytes
    model_round: int = 0
    life: Life = Life.RUNNING
    reason: str = ""
    keys: frozenset[tuple[int, str]] = frozenset()  # (manifest version, site): its sealed key is stored
    revoked: frozenset[str] = frozenset()
    # Of the current round:
    joins: Mapping[str, Joining] = field(default_factory=dict)
    plan: tuple[str, ...] = ()
    commits: Mapping[str, Committed] = field(default_factory=dict)
    acknowledgements: Mapping[str, frozenset[str]] = field(default_factory=dict)  # whose shares did not open
    enough_since: float | None = None  # when enough members had acknowledged, or answered, as ``since``
    contributors: tuple[str, ...] = ()  # U
    answers: Mapping[str, bytes] = field(default_factory=dict)
    reports: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def running(self) -> bool:
        """Neither finished nor aborted."""
        return self.life is Life.RUNNING
