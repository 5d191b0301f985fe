"""What can happen in a deep world."""

from __future__ import annotations

from typing import NamedTuple

from deep_world import SITES, STUDIES, World
from hypothesis import strategies as st

SECONDS = (1.0, 4.0, 11.0, 31.0, 130.0)
NAMES = tuple(STUDIES)


class Op(NamedTuple):
    kind: str
    study: int = 0
    who: int = 0
    which: int = 0


class Fault(NamedTuple):
    kind: str = ""
    at: int = 0


_KINDS = (
    ["all"] * 6 + ["round"] * 4 + ["act"] * 3 + ["tick"] * 2 + ["late", "again", "stale", "site", "restart"]
)
_OPS = [Op(kind, s, who, which) for kind in _KINDS for s in (0, 1) for who in range(4) for which in range(5)]
_CALLS = [
    Fault(kind, at) for kind in ("lost", "reply lost", "twice", "late", "cut") for at in (0, 1, 3, 6, 10, 15)
]
_DEATHS = [
    Fault(kind, at) for kind in ("before", "after", "site dies") for at in (0, 1, 2, 4, 7, 11, 16, 24, 40)
]
operations = st.lists(
    st.tuples(st.sampled_from(_OPS), st.sampled_from([Fault()] * 12 + _CALLS + _DEATHS)),
    min_size=3,
    max_size=9,
)


def run(world: World, op: Op, fault: Fault) -> None:
    """One operation."""
    study, site = NAMES[op.study], SITES[op.who]
    world.arm(fault.kind, fault.at)
    match op.kind:
        case "act" | "stale":
            world.act(site, study, stale=op.kind == "stale")
        case "all" | "round":
            number = world.state(study).round
            for _ in range(1 if op.kind == "all" else 6):
                if world.state(study).running and world.state(study).round == number:
                    for index, name in enumerate(SITES):
                        if op.which != 4 or index != op.who:  # one stays away
                            world.act(name, study)
                    if op.which == 4:
                        world.tick(16.0)
        case "tick":
            world.tick(SECONDS[op.which])
        case "late" | "again":
            world.deliver_late(op.who * 5 + op.which, again=op.kind == "again")
        case "site":
            world.restart_site(site)
        case "restart":
            world.clock.jump((-86_400.0, 3_600.0, 0.0, -5.0, 60.0)[op.which])
            world.clock.advance(SECONDS[op.which])
            world.restart(reboot=op.study == 1)
    world.arm("", 0)
