"""A study's state machine, driven event by event."""

from __future__ import annotations

from cipherward.coordinator.rounds import events
from cipherward.coordinator.rounds.machine import start, step
from cipherward.coordinator.rounds.state import Rules, StudyRules

SITES = ("a", "b", "c", "d")


def make(*, quorum: bool = False, k: int = 2, rounds: int = 3, colluders: int = 0) -> StudyRules:
    return StudyRules((Rules(1, 1, rounds, SITES, quorum, k, 3, colluders, 60, 30, 10, 10, 20),))


class Run:
    def __init__(self, rules: StudyRules) -> None:
        self.rules, self.now = rules, 0.0
        self.state, self.effects = start(rules, b"m0", 0.0)

    def __call__(self, event: events.Event, at: float | None = None) -> tuple[object, ...]:
        self.now = self.now if at is None else at
        self.state, effects = step(self.rules, self.state, event, self.now)
        return effects

    def keys(self) -> Run:
        for site in SITES:
            self.effects = self(events.KeyStored(site, 1))
        return self

    def join(self, *sites: str, key: bytes = b"K") -> tuple[object, ...]:
        effects: tuple[object, ...] = ()
        for site in sites:
            key_of = b"" if self.rules.at(1).quorum else key
            effects += self(events.JoinPosted(site, self.state.round, b"j" + site.encode(), key_of))
        return effects

    def commit(self, *sites: str) -> tuple[object, ...]:
        effects: tuple[object, ...] = ()
        for site in sites:
            effects += self(events.CommitPosted(site, self.state.round, 1, b"c" + site.encode()))
        return effects
