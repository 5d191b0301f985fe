"""Rounds are counted by how they ended."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from prometheus_client import generate_latest

from cipherward.coordinator.daemon.metrics import Metrics
from cipherward.coordinator.rounds.state import Life, Phase, State


def view(state: State) -> Any:
    return SimpleNamespace(state=state, name="trial", current=SimpleNamespace(length=1000))


def test_rounds_by_outcome() -> None:
    metrics = Metrics()
    first = State(round=1, phase=Phase.RELEASE, since=0.0, model=b"0")
    second = replace(first, round=2, phase=Phase.OPEN, model_round=1)
    metrics.moved(None, view(first))
    metrics.moved(view(first), view(replace(first, reports={"a": b"1"})))  # nothing ended
    metrics.moved(view(first), view(second))
    metrics.moved(view(second), view(replace(second, round=3)))  # aborted
    last = replace(second, round=3, phase=Phase.RELEASE)
    metrics.moved(view(last), view(replace(last, life=Life.FINISHED, model_round=3)))
    text = generate_latest(metrics.registry).decode()
    assert 'cipherward_rounds_total{outcome="released"} 2.0' in text
    assert 'cipherward_rounds_total{outcome="aborted"} 1.0' in text
