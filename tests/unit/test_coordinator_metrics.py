"""Rounds are counted by how they ended; what can be counted is there before it is."""

import ast
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from prometheus_client import generate_latest

from cipherward.coordinator.api.policy import POLICIES
from cipherward.coordinator.daemon.metrics import Metrics
from cipherward.coordinator.rounds.state import Life, Phase, State

API = Path(__file__).parents[2] / "coordinator/api"


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


def test_every_count_begins_at_zero() -> None:
    """Prometheus sees no increase in a series that begins with its first count."""
    metrics = Metrics()
    found = [
        sample
        for metric in metrics.registry.collect()
        for sample in metric.samples
        if metric.type == "counter"
    ]
    rounds = {s.labels["outcome"]: s.value for s in found if s.name == "cipherward_rounds_total"}
    assert rounds == {"released": 0, "aborted": 0}
    limited = [s for s in found if s.name == "cipherward_calls_limited_total"]
    assert {s.value for s in limited} == {0} and {s.labels["rpc"] for s in limited} == POLICIES.keys()
    limits = {(s.labels["rpc"], s.labels["limit"]) for s in limited}
    assert {("Upload", "max_total"), ("PutRelay", "item_bytes"), ("PutRelay", "max_stored")} <= limits
    assert {limit for _, limit in limits} == exceeded()


def exceeded() -> set[object]:
    """The names of all limits that the service's code can say were exceeded."""
    calls = [node for path in API.glob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    names = [
        node.args[1]
        for node in calls
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "exceeded"
    ]
    assert names and all(isinstance(name, ast.Constant) for name in names)
    return {name.value for name in names if isinstance(name, ast.Constant)}
