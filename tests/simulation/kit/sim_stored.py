"""What a simulated coordinator has on its disk."""

from __future__ import annotations

from dataclasses import dataclass, field

from sim_records import Record, digest

from cipherward.coordinator.rounds.state import Phase, State, StudyRules

CLOSED = (Phase.UNSEAL, Phase.RELEASE)
PIECES = 2
"""Chunks of an update; in the quorum suite one more piece for its shares."""


class Died(Exception):
    """The coordinator's process is gone in the middle of a call."""


@dataclass
class Stored:
    """A study on the coordinator's disk."""

    rules: StudyRules
    state: State
    transcript: bytes
    records: dict[tuple[int, str], Record] = field(default_factory=dict)
    posts: dict[tuple[int, str, str], Record] = field(default_factory=dict)
    pieces: dict[tuple[int, str, int], list[tuple[bytes, int]]] = field(default_factory=dict)
    sums: dict[int, int] = field(default_factory=dict)
    unopened: set[int] = field(default_factory=set)
    keys: dict[tuple[int, str], bytes] = field(default_factory=dict)
    models: dict[str, tuple[int, bytes, bytes]] = field(default_factory=dict)
    wanted: set[str] = field(default_factory=set)

    @property
    def quorum(self) -> bool:
        return self.rules.versions[0].quorum

    def digest_of(self, number: int, kind: str) -> bytes:
        """Of the record of that kind; empty if there is none."""
        record = self.records.get((number, kind))
        return b"" if record is None else digest(record)

    @property
    def newest_model_round(self) -> int:
        state = self.state
        return state.round if state.running and state.phase is Phase.RELEASE else state.model_round
