"""What can happen in a world, as values that Hypothesis draws, prints and shrinks, and how a history is run."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import strategies as st
from sim_world import JUMPS, POST_FAULTS, SECONDS, SITES, STUDIES, World

from cipherward.coordinator.rounds.state import Life


class Op(NamedTuple):
    """``who`` is a site's index, ``which`` whatever the kind takes; ``fault`` strikes the call number ``at``."""

    kind: str
    study: int = 0
    who: int = 0
    which: int = 0


class Fault(NamedTuple):
    kind: str = ""
    at: int = 0


WEIGHTS = {
    "round": 4,  # all sites, but ``which`` of them, act until the round is over
    "all": 8,  # all sites but ``which`` act once
    "act": 6,
    "stale": 2,  # act on a snapshot that is not the newest
    "straggle": 2,
    "sum": 3,
    "resum": 3,
    "tick": 4,
    "late": 4,
    "again": 3,  # as late, and it stays on its way
    "restart": 1,
    "reboot": 1,
    "outage": 2,  # the machine is off for some time
    "site": 3,
    "jump": 1,
    "forge": 2,
    "spoil": 2,
    "version": 1,
    "rare": 1,
}
FAULTS = (
    "lost",
    "late",
    "late",
    "twice",
    "twice",
    "reply lost",
    "before",
    "after",
    "cut",
    "site dies",
    "site dies",
)
_OPS = [
    Op(kind, study, who, which)
    for kind, weight in WEIGHTS.items()
    for study in range(len(STUDIES))
    for who in range(len(SITES))
    for which in (0, 0, 1, 2, 3, 4)
    for _ in range(weight)
]
_AT_ONCE = ("sum", "tick", "late", "again", "abort", "version", "forge")
"""Operations of one call: a fault strikes it, whatever its count."""
_FAULTS = [
    *[Fault()] * 80,
    *(Fault(kind, at) for kind in FAULTS for at in (0, 1, 2, 3, 4, 6, 9, 13, 19, 27)),
    *(Fault(kind, at) for kind in POST_FAULTS for at in (0, 0, 0, 1, 2, 3, 4, 7)),
]
operations = st.lists(st.tuples(st.sampled_from(_OPS), st.sampled_from(_FAULTS)), min_size=12, max_size=36)


def run(world: World, op: Op, fault: Fault) -> None:
    """One operation."""
    name, site, which = STUDIES[op.study], SITES[op.who], op.which
    world.network.arm(fault.kind, 0 if op.kind in _AT_ONCE else fault.at)
    match op.kind:
        case "act" | "stale":
            world.act(site, name, stale=op.kind == "stale")
        case "all":
            _everybody(world, name, op.who, which)
        case "round":
            _round(world, name, op.who, which)
        case "straggle":
            world.straggle(site, name)
        case "sum":
            world.sum(name) if which < 4 else world.sum_fails(name)
        case "resum":
            world.sum_again(name)
        case "tick":
            world.tick(SECONDS[which])
        case "late" | "again":
            world.late(op.who * len(SITES) + which, again=op.kind == "again")
        case "restart" | "reboot":
            world.restart_coordinator(reboot=op.kind == "reboot")
        case "outage":
            world.clock.advance(3600 + SECONDS[which] * 100)
            world.restart_coordinator(reboot=True)
        case "site":
            world.restart_site(site)
        case "jump":
            world.jump(JUMPS[which])
        case "forge":
            world.forge(site, name, which)
        case "spoil":
            number = world.coordinator.studies[name].state.round
            world.spoilt.add((name, number, site, SITES[which]))
        case "version":
            world.add_version(name)
        case "rare" if which == 3:
            world.revoke(site)
        case "rare" if (which, op.who) == (4, 0):
            world.abort(name)
    world.network.arm("", 0)


def _round(world: World, name: str, first_away: int, away: int) -> None:
    study = world.coordinator.studies[name]
    number = study.state.round
    for _ in range(9):
        before = study.state
        if before.round == number:
            _everybody(world, name, first_away, away)
            world.sum(name)
            if study.state is before and away:  # nothing but a deadline gets it any further
                world.tick(16.0)


def _everybody(world: World, name: str, first_away: int, away: int) -> None:
    """All act in turn, but ``away`` of them, of whom at most two stay away."""
    absent = {(first_away + step) % len(SITES) for step in range(away if away < 3 else 0)}
    for index, site in enumerate(SITES):
        if index not in absent:
            world.act(site, name)


def finish(world: World, away: int = 0) -> None:
    """No more faults, and one site is away (0: none; never the maker of the keys): both studies end without it. Then
    it is back, and every honest site of the last roster ends with the one model."""
    world.network.late.clear()
    for _ in range(150):
        before = {name: study.state for name, study in world.coordinator.studies.items()}
        for name in STUDIES:
            _everybody(world, name, away, int(away > 0))
            world.sum(name)
        if all(life is not Life.RUNNING for life in world.lives()):
            break
        if all(study.state is before[name] for name, study in world.coordinator.studies.items()):
            world.tick(15.0)
    for _ in range(10):
        for name in STUDIES:
            if not _all_ended(world, name):
                _everybody(world, name, 0, 0)
    world.witness.check()
    for name, study in world.coordinator.studies.items():
        assert not study.state.running, (
            f"study {name} hangs in round {study.state.round}, {study.state.phase}"
        )
        world.witness.reached[study.state.life] += 1
        world.witness.reached["unopened"] += len(study.unopened)
        for site in _honest(world, name):
            one = world.participants[site, name]
            assert one.row.ended, f"{site} hangs behind the end of {name}"
            if study.state.life is Life.FINISHED:
                assert one.row.model == study.state.model, f"{site} ended {name} with another model"


def _honest(world: World, name: str) -> list[str]:
    study = world.coordinator.studies[name]
    roster = study.rules.at(min(study.state.round, study.rules.versions[-1].rounds)).roster
    return [s for s in roster if s not in world.false and s not in study.state.revoked]


def _all_ended(world: World, name: str) -> bool:
    return all(world.participants[site, name].row.ended for site in _honest(world, name))


def history(world: World, ops: list[tuple[Op, Fault]]) -> None:
    """A whole history, and its end."""
    for op, fault in ops:
        run(world, op, fault)
    world.witness.check()
    finish(world, len(ops) % len(SITES))
