"""docs/operations.md lists every metric, every event of the logs and every limit, and none that does not exist; its
alerts ask for metrics that are there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import pytest

from cipherward.coordinator.api import policy
from cipherward.coordinator.daemon.metrics import Metrics
from cipherward.coordinator.daemon.readiness import CHECKS
from cipherward.coordinator.daemon.view import StudyView
from cipherward.coordinator.rounds.state import Phase, State
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


class Known(NamedTuple):
    """A metric as it is served: its type, its labels, and those of each series that is there before anything was
    counted."""

    type: str
    labels: tuple[str, ...]
    series: list[dict[str, str]]


def served(registry: Any) -> dict[str, Known]:
    """The daemon's own metrics by the name that a query uses."""
    found = {}
    for collector in registry._collector_to_names:
        for metric in collector.collect():
            if metric.name.startswith("cipherward"):
                labels = tuple(getattr(collector, "_labelnames", getattr(metric, "_labelnames", ())))
                name = f"{metric.name}_total" if metric.type == "counter" else metric.name
                series = [sample.labels for sample in metric.samples if sample.name == name]
                found[name] = Known(metric.type, labels, series)
    return found


@pytest.fixture
def of_the_coordinator() -> dict[str, Known]:
    metrics, running = Metrics(), State(round=1, phase=Phase.OPEN, since=0.0, model=b"")
    metrics.moved(None, cast(StudyView, SimpleNamespace(name="trial", state=running)))
    return served(metrics.registry)


@pytest.fixture
def of_a_site(tmp_path: Path) -> dict[str, Known]:
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
    return served(metrics.registry)


def in_table(metrics: dict[str, Known]) -> set[tuple[str, ...]]:
    return {(f"`{name}`", known.type, ", ".join(known.labels)) for name, known in metrics.items()}


def test_metrics_of_the_coordinator(of_the_coordinator: dict[str, Known]) -> None:
    assert in_table(of_the_coordinator) == {row[:3] for row in rows("Metrics of the coordinator")}


def test_metrics_of_a_site(of_a_site: dict[str, Known]) -> None:
    assert in_table(of_a_site) == {row[:3] for row in rows("Metrics of a site")}


SELECTOR = re.compile(r"(\w*cipherward_\w+)(?:\{([^}]*)\})?")
FUNCTIONS = {"increase", "sum"}


def alerts() -> list[str]:
    """The expressions of the table of alerts."""
    head, *table = [
        line.split(" | ") for line in section("What to alert on").splitlines() if line[:2] == "| "
    ]
    assert head[1] == "expression" and all(len(row) == 3 for row in table)
    found = [re.findall(r"`([^`]+)`", row[1]) for row in table]
    assert all(found)
    return [expression for row in found for expression in row]


def problems(expression: str, metrics: dict[str, Known]) -> list[str]:
    """What of an expression the daemons do not serve, or not before the first event that it is to catch."""
    found = []
    for name, matchers in SELECTOR.findall(expression):
        if name not in metrics:
            found.append(f"no metric {name}")
            continue
        known, wanted = metrics[name], dict(re.findall(r'(\w+)\s*=\s*"([^"]*)"', matchers))
        if matchers and ", ".join(f'{key}="{value}"' for key, value in wanted.items()) != matchers:
            found.append(f"cannot read {matchers}")
        found += [f"{name} has no label {label}" for label in wanted if label not in known.labels]
        is_counted = re.search(rf"increase\({name}\b", expression) is not None
        if is_counted != (known.type == "counter"):
            found.append(f"{name} is a {known.type}")
        if (is_counted or wanted) and not any(wanted.items() <= labels.items() for labels in known.series):
            found.append(f"no such series of {name}")
    rest = re.sub(r"\[\d+[smhdw]\]", "", SELECTOR.sub("", expression))
    return found + [
        f"unknown {word}" for word in re.findall(r"\b[A-Za-z_]\w*", rest) if word not in FUNCTIONS
    ]


def test_alerts(of_the_coordinator: dict[str, Known], of_a_site: dict[str, Known]) -> None:
    metrics = of_the_coordinator | of_a_site
    assert {expression: problems(expression, metrics) for expression in alerts()} == {
        expression: [] for expression in alerts()
    }
    for wrong, problem in (
        ("increase(cipherward_round_total[1d]) > 0", "no metric cipherward_round_total"),
        ("site_cipherward_ready == 0", "no metric site_cipherward_ready"),
        (
            'increase(cipherward_rounds_total{how="aborted"}[1d]) > 0',
            "cipherward_rounds_total has no label how",
        ),
        (
            'increase(cipherward_rounds_total{outcome="abort"}[1d]) > 0',
            "no such series of cipherward_rounds_total",
        ),
        ('increase(cipherward_calls_total{rpc="Hello"}[1d]) > 0', "no such series of cipherward_calls_total"),
        ('cipherward_round_phase{phase="summing"} == 1', "no such series of cipherward_round_phase"),
        ('cipherward_round{study=~"a"} > 0', "cannot read study"),
        ("increase(cipherward_ready[1d]) > 0", "cipherward_ready is a gauge"),
        ("cipherward_site_refusals_total > 0", "cipherward_site_refusals_total is a counter"),
        ("cipherward_ready == 0 and ready_cipherward", "unknown and"),
    ):
        assert any(found.startswith(problem) for found in problems(wrong, metrics)), wrong


@pytest.mark.parametrize("name", sorted({found[0] for each in alerts() for found in SELECTOR.findall(each)}))
def test_an_alert_on_a_metric_that_is_gone_is_noticed(
    name: str, of_the_coordinator: dict[str, Known], of_a_site: dict[str, Known]
) -> None:
    metrics = of_the_coordinator | of_a_site
    del metrics[name]
    assert f"no metric {name}" in [found for each in alerts() for found in problems(each, metrics)]


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
    shown = [row[0].strip("`") for row in rows("Health")]
    assert shown == ["/metrics", "/healthz", "/readyz", *CHECKS, *health.CHECKS]
    assert f"{LEAST_FREE_BYTES // 2**20} MiB" in text and f"{health.RECONNECT_SECONDS:g} s" in text
