"""Random histories of a study, with crashes before and after every step is persisted.

Contributions are distinct powers of 4: in the model's base-4 digits a double count shows as a 2, one that was
never committed as a digit that must not be there. Hypothesis shrinks a failing history to its core.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cipherward.coordinator.rounds import codec, events
from cipherward.coordinator.rounds.effects import (
    Discard,
    NoteUnopened,
    SignAbort,
    SignClose,
    SignPlan,
    SignRound,
    StartSum,
)
from cipherward.coordinator.rounds.machine import owed, start, step
from cipherward.coordinator.rounds.quorum import waiting
from cipherward.coordinator.rounds.state import Life, Phase, Rules, State, StudyRules
from cipherward.crypto.manifest_rules import effective_threshold
from cipherward.errors import ProtocolError

SITES = ("a", "b", "c", "d", "e")
ROUNDS = 6
LISTS = int(os.environ.get("CIPHERWARD_SIMULATIONS", "200"))


def rules_of(quorum: bool) -> StudyRules:
    first = Rules(1, 1, ROUNDS, SITES, quorum, 3, 3 if quorum else 0, 0, 60, 30, 10, 10, 20)
    second = Rules(2, 4, ROUNDS, SITES[:4], quorum, 3, 3 if quorum else 0, 0, 60, 30, 10, 10, 20)
    return StudyRules((first, second))


def encode_model(value: int) -> bytes:
    return value.to_bytes(64, "big")


@dataclass
class World:
    """``durable``, ``records``, ``updates`` and ``sums`` survive a crash; the rest is one process."""

    quorum: bool
    now: float = 0.0
    durable: str = ""
    records: list[tuple[object, ...]] = field(default_factory=list)
    updates: dict[tuple[int, str], int] = field(default_factory=dict)  # staged before they are committed
    sums: dict[int, int] = field(default_factory=dict)
    unopened: set[int] = field(default_factory=set)  # quorum: rounds whose sum stayed closed
    graceful: set[int] = field(default_factory=set)  # quorum: rounds that went on without a slow member
    running_sum: StartSum | None = None
    last_sum: events.Summed | None = None
    acknowledged: dict[tuple[int, str], bytes] = field(
        default_factory=dict
    )  # commits the coordinator accepted
    complaints: dict[tuple[int, str], frozenset[str]] = field(default_factory=dict)  # quorum, by member
    answers: dict[tuple[int, str], bytes] = field(default_factory=dict)  # quorum

    def __post_init__(self) -> None:
        self.rules = rules_of(self.quorum)
        self.state, effects = start(self.rules, encode_model(0), self.now)
        self.persist(self.state, effects)

    def persist(self, state: State, effects: tuple[object, ...]) -> None:
        assert codec.decode(codec.encode(state)) == state
        self.durable = codec.encode(state)
        self.unopened.update(e.round for e in effects if isinstance(e, NoteUnopened))
        if (
            self.state.enough_since is not None
            and state.phase is not self.state.phase
            and waiting(self.state)
        ):
            self.graceful.add(state.round)
        for effect in effects:
            if isinstance(effect, SignRound | SignPlan | SignClose | SignAbort):
                self.records.append((type(effect).__name__, effect.round, effect))
        self.state = state

    def perform(self, effects: tuple[object, ...]) -> None:
        for effect in effects:
            if isinstance(effect, StartSum):
                self.running_sum = effect
            elif isinstance(effect, Discard):
                self.updates = {key: v for key, v in self.updates.items() if key[0] != effect.round}

    def apply(self, event: events.Event, crash: str = "no") -> bool:
        try:
            state, effects = step(self.rules, self.state, event, self.now)
        except ProtocolError:
            return False
        if crash == "before":
            self.restart()
            return False
        self.persist(state, effects)
        if crash == "after":
            self.restart()
        else:
            self.perform(effects)
        return True

    def restart(self) -> None:
        self.running_sum = None
        self.now = self.now % 7  # another boot, another monotonic clock
        self.state = codec.decode(self.durable)
        state, effects = step(self.rules, self.state, events.Restarted(), self.now)
        self.persist(state, effects)
        again = owed(state)
        self.perform(effects + (() if again is None else (again,)))

    def run(self, op: tuple[str, int, int, str]) -> None:
        kind, which, back, crash = op
        site, number = SITES[which % len(SITES)], max(1, self.state.round - back)
        stamp = f"{site}/{number}".encode()
        match kind:
            case "key":
                self.apply(events.KeyStored(site, self.rules.at(self.state.round).version), crash)
            case "join":
                self.apply(
                    events.JoinPosted(site, number, b"j" + stamp, b"" if self.quorum else b"key"), crash
                )
            case "commit" | "recommit":
                record = stamp + kind.encode()
                digit = 4 ** ((number - 1) * len(SITES) + SITES.index(site))
                if number == self.state.round and self.state.phase is Phase.UPLOAD:
                    self.updates.setdefault((number, site), digit)
                open_for_it = self.state.phase is Phase.UPLOAD and number == self.state.round
                if self.apply(events.CommitPosted(site, number, 1, record), crash):
                    assert open_for_it or (number, site) in self.acknowledged, "a late commit was accepted"
                    known = self.acknowledged.setdefault((number, site), record)
                    assert known == record, "two different commits were accepted"
            case "acknowledge":
                bad = frozenset({SITES[back]} if back > 1 else ())
                if self.apply(events.AcknowledgementPosted(site, number, bad), crash):
                    assert self.complaints.setdefault((number, site), bad) == bad
            case "answer" | "reanswer":
                record = stamp + kind.encode()
                if self.apply(events.AnswerPosted(site, number, record), crash):
                    assert self.answers.setdefault((number, site), record) == record, (
                        "two answers of one site"
                    )
            case "sum" if self.running_sum is not None:
                job, self.running_sum = self.running_sum, None
                if self.state.phase is not Phase.SUM or self.state.round != job.round:
                    return  # the runner looks before it adds: the updates may be gone
                missing = [name for name in job.contributors if (job.round, name) not in self.updates]
                assert not missing, "an update that was never committed is summed"
                total = sum(self.updates[job.round, name] for name in job.contributors)
                assert self.sums.setdefault(job.round, total) == total, "a sum was made of two sets"
                self.last_sum = events.Summed(job.round, encode_model(total), 1)
                self.apply(self.last_sum, crash)
            case "resum" if self.last_sum is not None:  # a sum that was run twice, or comes very late
                self.apply(self.last_sum, crash)
            case "fail" if self.running_sum is not None:
                job, self.running_sum = self.running_sum, None
                self.apply(events.SumFailed(job.round, "disk"), crash)
            case "report":
                value = int.from_bytes(self.state.model, "big") + self.sums.get(number, 0)
                wrong = 7 if back == 2 else 0
                if number == self.state.round:
                    self.apply(events.ReportPosted(site, number, encode_model(value + wrong)), crash)
            case "revoke" if back == 3:
                self.apply(events.SitesRevoked(frozenset({site})), crash)
            case "tick":
                self.now += (3.5, 15.0, 31.0, 61.0, 130.0)[which]
                self.apply(events.Ticked(), crash)
            case "everyone":
                for each in ("key", "join", "commit", "acknowledge", "sum", "answer", "report"):
                    self.run((f"all {each}", which, 0, crash))
            case "absentees":  # some commit in time, the deadline comes, the rest commit late
                for index in range(3):
                    self.run(("commit", index, 0, "no"))
                self.run(("tick", 2, 0, crash))
                if which < 3:
                    self.run(("commit", 3 + which % 2, 0, "no"))
            case "survivors":  # quorum: some die after their commit, the others go on without them
                for each, alive in (("acknowledge", which + 1), ("sum", 1), ("answer", which + 1 - back)):
                    for index in range(alive):
                        self.run((each, index, 0, crash if index == 1 else "no"))
                    self.run(("tick", 0, 0, "no"))
                self.run(("tick", 1, 0, crash))
            case _ if kind.startswith("all "):
                number = self.state.round
                for index in range(len(SITES)):
                    if self.state.round == number:
                        self.run((kind[4:], index, 0, crash if index == which else "no"))


def check_opened(world: World, number: int, plan: tuple[str, ...], u: tuple[str, ...]) -> None:
    """At least t members said that they opened all shares of U; and U is opened only after t answers."""
    needed = effective_threshold(3, len(plan))
    able = [s for s in plan if not world.complaints.get((number, s), frozenset(u)).intersection(u)]
    assert len(able) >= needed, "U cannot be opened by enough members"
    answered = [s for s in plan if (number, s) in world.answers]
    if world.state.model_round == number:
        assert len(answered) >= needed, "a sum was opened by too few"
        assert not any(world.complaints.get((number, s), frozenset()).intersection(u) for s in answered)


def check(world: World) -> None:
    rounds: dict[int, list[str]] = {}
    for kind, number, _ in world.records:
        rounds.setdefault(number, []).append(kind)
    assert list(rounds) == list(range(1, len(rounds) + 1)), "a round's number was skipped or used again"
    for kinds in rounds.values():
        assert kinds in (
            ["SignRound"],
            ["SignRound", "SignPlan"],
            ["SignRound", "SignAbort"],
            ["SignRound", "SignPlan", "SignAbort"],
            ["SignRound", "SignPlan", "SignClose"],
        ), kinds
    plans = {n: e.sites for k, n, e in world.records if k == "SignPlan"}
    allowed = set()
    for kind, number, effect in world.records:
        if kind == "SignClose":
            assert len(effect.contributors) >= 3 and set(effect.contributors) <= set(plans[number])
            for site in effect.contributors:
                assert (
                    (number, site) in world.updates or number < world.state.round or not world.state.running
                )
                allowed.add((number - 1) * len(SITES) + SITES.index(site))
            if world.quorum:
                check_opened(world, number, plans[number], effect.contributors)
            digits = {(number - 1) * len(SITES) + SITES.index(site) for site in effect.contributors}
            if number in world.unopened:
                allowed -= digits
            assert int.from_bytes(effect.root, "big") == sum(4**d for d in digits), "the sum is not that of U"
    value, digit = int.from_bytes(world.state.model, "big"), 0
    while value:
        assert value % 4 in (0, 1), "an update was counted twice"
        assert value % 4 == 0 or digit in allowed, "an update outside U was counted"
        value, digit = value // 4, digit + 1


OPS = (
    "key join join commit commit recommit acknowledge acknowledge answer answer reanswer "
    "sum sum resum fail report report revoke tick tick"
)
WHOLE = (
    "all key",
    "all join",
    "all commit",
    "absentees",
    "survivors",
    "all acknowledge",
    "all answer",
    "all report",
    "everyone",
)
op = st.tuples(
    st.sampled_from([*OPS.split(), *WHOLE, *WHOLE]),
    st.integers(0, 4),
    st.sampled_from([0, 0, 0, 0, 1, 2, 3]),
    st.sampled_from(["no", "no", "no", "before", "after"]),
)


@pytest.mark.parametrize("quorum", [False, True])
def test_no_history_counts_an_update_twice_or_out_of_place(quorum: bool) -> None:
    reached: Counter[str] = Counter()

    # The same lists each time: whether they go deep enough is asserted below.
    @settings(max_examples=LISTS, deadline=None, derandomize=True)
    @given(st.lists(op, min_size=30, max_size=60))
    def history(ops: list[tuple[str, int, int, str]]) -> None:
        world = World(quorum)
        for one in ops:
            world.run(one)
            check(world)
        reached.update({kind for kind, _, _ in world.records})
        reached["Unopened"] += len(world.unopened)
        reached["Graceful"] += len(world.graceful)
        reached[world.state.life.value] += 1

    history()
    # The histories go deep enough to mean something.
    deep = ["SignPlan", "SignClose", "SignAbort", *(("Unopened", "Graceful") if quorum else ())]
    assert min(reached[kind] for kind in deep) >= LISTS // 20, reached


@pytest.mark.parametrize("quorum", [False, True])
def test_a_calm_study_finishes_with_every_update_once(quorum: bool) -> None:
    world = World(quorum)
    for _ in range(ROUNDS):
        world.run(("everyone", 0, 0, "no"))
        check(world)
    assert world.state.life is Life.FINISHED
    assert world.state.model_round == ROUNDS
    # Rounds 1 to 3 had five sites, rounds 4 to 6 four.
    expected = sum(
        4 ** ((r - 1) * len(SITES) + i) for r in range(1, ROUNDS + 1) for i in range(5 if r < 4 else 4)
    )
    assert int.from_bytes(world.state.model, "big") == expected


def test_the_check_sees_a_double_count() -> None:
    world = World(False)
    world.run(("everyone", 0, 0, "no"))
    doubled = int.from_bytes(world.state.model, "big") * 2
    world.state = replace(world.state, model=encode_model(doubled))
    with pytest.raises(AssertionError, match="counted twice"):
        check(world)
