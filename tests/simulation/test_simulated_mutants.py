"""The simulation can fail: every one of these mistakes is found by it."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from sim_mutants import MUTANTS
from sim_operations import history, operations
from sim_world import World

LISTS = 20_000
"""Bounded: a mistake that takes more to be found counts as not found. The rarest takes 1,600 on average, at most
4,900 with twelve seeds. A seed by itself proves nothing: what Hypothesis draws depends on the modules loaded."""


def breaks(suites: tuple[bool, bool]) -> bool:
    """Whether an invariant breaks in one of so many histories. Any other exception is raised: a mutant of a function
    that is called otherwise by now is not found, but out of date."""

    @settings(
        max_examples=LISTS,
        database=None,
        deadline=None,  # a slow machine is no finding
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @seed(1)
    @given(operations)
    def histories(ops) -> None:
        history(World(*suites), ops)

    try:
        histories()
    except AssertionError:
        return True
    return False


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", MUTANTS)
def test_a_mistake_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTANTS[name](monkeypatch)
    assert breaks((False, True))
