"""Random histories of the real coordinator (handlers, state machine, store on SQLite, blobs, sums) and real site agents
(client, journal, ledger, keys, records, quorum suite), killed around their transactions and put up again on the same
disk. Two studies at once: the quorum suite as it is, and shared keys with vectors in clear in the place of CKKS.

    CIPHERWARD_DEEP_SIMULATIONS=500 pytest tests/simulation/test_deep_simulation.py -s --timeout 0
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from deep_operations import Fault, Op, operations, run
from deep_witness import Witness
from deep_world import NOW, ROUNDS, SITES, STUDIES, Template, World, copied
from hypothesis import HealthCheck, Phase, given, seed, settings

from cipherward.coordinator.aggregation.local import LocalEngine
from cipherward.coordinator.daemon.recording import Recorder
from cipherward.coordinator.rounds import codec
from cipherward.coordinator.rounds.state import Life
from cipherward.coordinator.store.studies import REPORT, StudyTable
from cipherward.crypto.suites import registry

LISTS = int(os.environ.get("CIPHERWARD_DEEP_SIMULATIONS", "25"))


def memory() -> Path | None:
    """A folder that costs no disk writes, where there is one."""
    shared = Path("/dev/shm")
    return shared if os.access(shared, os.W_OK) else None


@pytest.fixture(scope="module")
def template() -> Iterator[Template]:
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    folder = Path(tempfile.mkdtemp(dir=memory(), prefix="cipherward-deep-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.PACKAGES, "shared-key", "deep_clear")
        # Credentials are of the simulated time, and so is their check.
        patch.setattr("time.time", lambda: NOW + 60)
        yield Template(folder)
    shutil.rmtree(folder)
    structlog.configure(**before)


@contextmanager
def world_of(template: Template) -> Iterator[tuple[World, Witness]]:
    folder = Path(tempfile.mkdtemp(dir=memory(), prefix="cipherward-deep-"))
    try:
        world = copied(template, folder)
        try:
            yield world, Witness(world)
        finally:
            world.close()
    finally:
        shutil.rmtree(folder)


def simulate(template: Template, lists: int, *, shrink: bool = True) -> Counter[str]:
    reached: Counter[str] = Counter()

    def histories(ops: list[tuple[Op, Fault]]) -> None:
        with world_of(template) as (world, witness):
            for op, fault in ops:
                run(world, op, fault)
            witness.check()
            reached.update(world.reached)
            reached["lists"] += 1

    checks = list(HealthCheck)
    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]
    made: Any = given(operations)(histories)
    made = settings(
        max_examples=lists,
        database=None,
        phases=phases,
        suppress_health_check=checks,
        report_multiple_bugs=False,
    )(made)
    (made if shrink else seed(7)(made))()
    return reached


@pytest.mark.slow
def test_nothing_is_lost_or_counted_twice_by_the_real_thing(template: Template) -> None:
    reached = simulate(template, LISTS)
    print(f"\n{reached}")
    assert (
        min(reached[kind] for kind in ("coordinator restarted", "commit answered", "sums added up again")) > 0
    )


def test_a_calm_history_ends_with_every_update_once(template: Template) -> None:
    with world_of(template) as (world, witness):
        for index in range(len(STUDIES)):
            for _ in range(ROUNDS + 1):
                run(world, Op("round", index), Fault())
        witness.check()
        for study in STUDIES:
            state = world.state(study)
            assert (state.life, state.model_round) == (Life.FINISHED, ROUNDS)
            for site in SITES:
                assert world.agents[site].site.studies.row(study).model_digest == state.model


def test_a_round_that_closed_and_was_given_up_is_in_no_model(template: Template) -> None:
    # Found at random: the next round's sum is not exactly 0 in the places of this one.
    study = list(STUDIES).index("quorum")
    with world_of(template) as (world, witness):
        run(world, Op("all", study), Fault())
        run(world, Op("all", study), Fault("lost", 0))
        run(world, Op("all", study), Fault())
        run(world, Op("all", study, 2, 4), Fault())
        assert (world.state("quorum").round, world.state("quorum").model_round) == (2, 0)
        run(world, Op("round", study), Fault())
        assert world.state("quorum").model_round == 2
        witness.check()


def _forgets_commits(patch: pytest.MonkeyPatch) -> None:
    decode = codec.decode

    def forgetful(text: str) -> Any:
        state = decode(text)
        for site in list(state.commits)[:1]:
            del state.commits[site]
        return state

    patch.setattr(codec, "decode", forgetful)


def _signs_again(patch: pytest.MonkeyPatch) -> None:
    """A close record whose U lacks one."""
    sign = Recorder._sign_close

    def other(self: Recorder, t: Any, view: Any, effect: Any) -> Any:
        return sign(self, t, view, type(effect)(effect.round, effect.contributors[1:], effect.root, 2))

    patch.setattr(Recorder, "_sign_close", other)


def _adds_twice(patch: pytest.MonkeyPatch) -> None:
    """The first update of U is in the sum twice."""
    run_engine = LocalEngine.run

    def doubled(self: LocalEngine, job: Any, *args: Any) -> Any:
        return run_engine(self, replace(job, updates=[job.updates[0], *job.updates]), *args)

    patch.setattr(LocalEngine, "run", doubled)


def _forgets_reports(patch: pytest.MonkeyPatch) -> None:
    """A post is answered and never written."""
    put = StudyTable.put_post
    patch.setattr(StudyTable, "put_post", lambda self, *args: None if args[2] == REPORT else put(self, *args))


MISTAKES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "forgets a commit at a restart": _forgets_commits,
    "signs another U than was summed": _signs_again,
    "adds an update twice": _adds_twice,
    "answers and does not write": _forgets_reports,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found(name: str, template: Template, monkeypatch: pytest.MonkeyPatch) -> None:
    MISTAKES[name](monkeypatch)
    with pytest.raises(AssertionError):  # of the witness; anything else is a mistake that is out of date
        simulate(template, 40, shrink=False)
