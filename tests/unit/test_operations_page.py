"""docs/operations.md lists every metric, every event of the logs and every limit, and none that does not exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cipherward.coordinator.api import policy
from cipherward.coordinator.daemon.metrics import Metrics
from cipherward.coordinator.daemon.readiness import CHECKS
from cipherward.monitoring import LEAST_FREE_BYTES
from cipherward.site_agent.daemon import health
from cipherward.site_agent.daemon.metrics import SiteMetrics

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/operations.md").read_text()
LEVELS = {"info", "warning", "error"}
NOTHING: Any = SimpleNamespace()


def section(title: str) -> str:
    found = re.search(rf"^##+ {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def rows(title: str) -> list[tuple[str, ...]]:
    lines = [line for line in section(title).splitlines() if line.startswith("| `")]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]


def events(part: str) -> Iterator[tuple[str, str]]:
    """Every event that the part's code logs, and at which level."""
    for path in (ROOT / part).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr not in LEVELS | {"debug", "exception", "critical"}:
                continue
            owner = node.func.value
            if (owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")) != "log":
                continue
            event = node.args[0]
            assert isinstance(event, ast.Constant) and isinstance(event.value, str), (
                f"{path}:{node.lineno}: an event is a constant, so that it can be counted and looked for"
            )
            yield event.value, node.func.attr


@pytest.mark.parametrize(
    ("title", "part"), [("Log of the coordinator", "coordinator"), ("Log of a site", "site_agent")]
)
def test_events(title: str, part: str) -> None:
    assert {(f"`{event}`", level) for event, level in events(part)} == {row[:2] for row in rows(title)}


def metrics_of(registry: Any) -> set[tuple[str, str]]:
    return {
        (f"`{metric.name}{'_total' if metric.type == 'counter' else ''}`", metric.type)
        for metric in registry.collect()
        if metric.name.startswith("cipherward")
    }


def test_metrics_of_the_coordinator() -> None:
    assert metrics_of(Metrics().registry) == {row[:2] for row in rows("Metrics of the coordinator")}


def test_metrics_of_a_site(tmp_path: Path) -> None:
    metrics = SiteMetrics()
    ledger = SimpleNamespace(head=lambda: SimpleNamespace(digest=b"1"), datasets=list)
    site: Any = SimpleNamespace(
        folder=SimpleNamespace(root=tmp_path),
        member=SimpleNamespace(days_left=lambda _now: 3),
        clock=SimpleNamespace(now=lambda: 0.0),
        ledger=ledger,
        policy=SimpleNamespace(datasets={}),
    )
    metrics.ask(site, lambda: True)
    assert metrics_of(metrics.registry) == {row[:2] for row in rows("Metrics of a site")}


def test_limits() -> None:
    head, *table = policy.table()
    shown = [line for line in section("Limits of the coordinator").splitlines() if line.startswith("| ")]
    cells = [tuple(cell.strip().strip("`") for cell in line[1:-1].split("|")) for line in shown]
    start = cells.index(head)
    assert cells[start + 1 : start + 1 + len(table)] == table
    for name, value in (
        ("caller_open_calls", policy.CALLER_OPEN_CALLS),
        ("max_chunks", policy.MAX_CHUNKS),
        ("message of any RPC", policy.size(policy.MAX_MESSAGE)),
        ("headers of a call", policy.size(policy.MAX_METADATA)),
        ("open calls of all callers", policy.MAX_OPEN_CALLS),
        ("calls on one connection", policy.MAX_STREAMS),
        ("connections", policy.MAX_CONNECTIONS),
        ("TLS handshake", f"{policy.HANDSHAKE_SECONDS} s"),
    ):
        assert any(row[0] == name and row[1] == str(value) for row in cells), (name, value)


def test_checks_of_health() -> None:
    text = section("Health")
    assert all(f"`{name}`" in text for name in (*CHECKS, *health.CHECKS))
    assert f"{LEAST_FREE_BYTES // 2**20} MiB" in text and f"{health.RECONNECT_SECONDS:g} s" in text
