"""Random histories of two studies at once, shrunk to their core where an invariant breaks: sites that join, train,
upload, commit, acknowledge, answer and report over a network that loses, delays, repeats and reorders; a coordinator
and sites that die before or after any transaction; deadlines, reboots, a wall clock that jumps, revocations, forgers,
versions.

2,000 lists by default. For many, each from fresh randomness, with what they reached:

    CIPHERWARD_SIMULATIONS=100000 pytest tests/simulation/test_rounds_simulation.py -k invariant -s --timeout 0
"""

from __future__ import annotations

import os
import secrets
from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from sim_operations import Fault, Op, finish, history, operations, run
from sim_records import model_of, value_of
from sim_stored import Stored
from sim_world import ROUNDS, SITES, STUDIES, World

from cipherward.coordinator.rounds.state import Life
from cipherward.coordinator.rounds.state import Phase as RoundPhase

LISTS = int(os.environ.get("CIPHERWARD_SIMULATIONS", "2000"))
BATCH = 500
"""Hypothesis remembers what it has tried: many lists are run in batches, so that it need not remember all."""
SUITES = {"both suites": (False, True), "quorum twice": (True, True)}
DEEP = {  # of every 100 lists, at least so many
    "Close": 100,
    "Abort": 10,
    "unopened": 1,
    "coordinator restarted": 50,
    "site died": 20,
    "late": 20,
    "cut": 1,
    "opened": 300,
    "answer answered": 100,
}


def simulate(suites: tuple[bool, ...], lists: int, start: int | None) -> Counter[str]:
    """So many histories; ``start``: the seed, or None for fresh randomness."""
    reached: Counter[str] = Counter()

    @settings(
        max_examples=lists,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.too_slow],
    )
    @seed(secrets.randbits(64) if start is None else start)
    @given(operations)
    def histories(ops: list[tuple[Op, Fault]]) -> None:
        world = World(*suites)
        history(world, ops)
        reached.update(world.witness.reached)
        reached["lists"] += 1

    histories()
    return reached


@pytest.mark.parametrize("suites", SUITES)
def test_every_invariant_holds_in_every_history(suites: str) -> None:
    reached: Counter[str] = Counter()
    for batch in range(max(1, LISTS // len(SUITES) // BATCH)):
        reached += simulate(SUITES[suites], BATCH, batch if "CI" in os.environ else None)
        print(f"\r{suites}: {reached['lists']} lists", end="", flush=True)
    print(", ".join(f" {kind} {count}" for kind, count in sorted(reached.items())))
    shallow = {kind for kind, least in DEEP.items() if 100 * reached[kind] < least * reached["lists"]}
    assert not shallow, f"the histories do not go deep enough: {shallow} in {reached}"


@pytest.mark.parametrize("suites", SUITES)
def test_calm_studies_finish_with_every_update_once(suites: str) -> None:
    world = World(*SUITES[suites])
    for study in range(len(STUDIES)):
        run(world, Op("version", study), Fault())
    finish(world)
    for name in STUDIES:
        stored = world.coordinator.studies[name]
        assert (stored.state.life, stored.state.model_round) == (Life.FINISHED, ROUNDS)
        # Round 1 has five sites, the others four.
        rosters = {number: SITES if number == 1 else SITES[:4] for number in range(1, ROUNDS + 1)}
        expected = sum(world.weight(name, n, site) for n, roster in rosters.items() for site in roster)
        assert value_of(stored.state.model) == expected


@pytest.mark.parametrize("late", range(4))
@pytest.mark.parametrize("sites", [5, 3])
def test_reports_behind_the_end_do_not_divide_the_sites(sites: int, late: int) -> None:
    """All open the last sum and one report comes in time: the round is given up. Then others' reports come, before
    and after the sites look at them. Three contributors: a single vote more would make it stand."""
    world = World(False, True)
    name, study = "y", world.coordinator.studies["y"]
    if sites == 3:
        world.add_version(name)
    for _ in range(ROUNDS - 1):
        run(world, Op("round", 1), Fault())
    while study.state.phase is not RoundPhase.RELEASE:
        before = study.state
        for site in SITES[:sites]:
            world.act(site, name)
        world.sum(name)
        if study.state is before:
            world.tick(61.0)
    for who in range(sites):
        run(world, Op("act", 1, who), Fault("post late" if who else ""))
    assert set(study.state.reports) == {SITES[0]} and len(study.state.contributors) == sites
    world.tick(41.0)
    assert study.state.life is Life.FINISHED and study.unopened == {ROUNDS}
    world.act(SITES[1], name)
    for _ in range(min(late, sites - 1)):
        world.late(0, again=False)
    finish(world)
    assert world.witness.reached["went back"] == sites


def _after_a_round() -> tuple[World, Stored]:
    world = World(False, True)
    run(world, Op("round", 0), Fault())
    return world, world.coordinator.studies["x"]


def test_the_witness_sees_a_double_count() -> None:
    world, study = _after_a_round()
    study.state = study.state.__class__(
        round=2, phase=study.state.phase, since=0.0, model=model_of(2 * value_of(study.state.model))
    )
    with pytest.raises(AssertionError, match="counted twice"):
        world.witness._check_model("x", study)


def test_the_witness_sees_a_changed_record() -> None:
    world, study = _after_a_round()
    closed = study.records[1, "close"]
    study.records[1, "close"] = closed._replace(contributions=closed.contributions[1:])
    with pytest.raises(AssertionError, match="has changed"):
        world.witness.check()


def test_the_witness_sees_a_forgotten_commit() -> None:
    world, study = _after_a_round()
    del study.posts[1, "commit", "c"]
    with pytest.raises(AssertionError, match="acknowledged commit was forgotten"):
        world.witness.check()
