"""What makes a site's agent not ready, and ready again; what makes it not alive."""

from __future__ import annotations

import errno
import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cipherward import durable, monitoring
from cipherward.clock import ManualClock
from cipherward.errors import EnvironmentProblem, IdentityError
from cipherward.monitoring import Monitoring
from cipherward.site_agent.daemon import health as health_module
from cipherward.site_agent.daemon.health import CHECKS, RECONNECT_SECONDS, Health
from cipherward.site_agent.daemon.metrics import SiteMetrics
from cipherward.site_agent.policy.template import write_default
from cipherward.site_agent.state.folder import SiteFolder


class Parts:
    """What a site is made of, as far as its health goes; each can be broken."""

    def __init__(self, folder: Path) -> None:
        write_default(folder / "policy.toml")
        self.clock = ManualClock()
        self.metrics = SiteMetrics(self.clock)
        self.error: Exception | None = None
        self.trainer_runs = True
        self.expired = False
        self.site: Any = SimpleNamespace(
            clock=self.clock,
            folder=SiteFolder(folder),
            ledger=SimpleNamespace(head=self._head),
            trainer=SimpleNamespace(answers=lambda: self.trainer_runs),
            member=SimpleNamespace(credential=SimpleNamespace(check=self._check), status=None),
        )
        self.health = Health(self.site, self.metrics)

    def _head(self) -> None:
        if self.error:
            raise self.error

    def _check(self, _now: float, _status: object) -> None:
        if self.expired:
            raise IdentityError("the certificate has expired")

    def failed(self) -> list[str]:
        self.clock.advance(health_module.FRESH_SECONDS)
        found = self.health.ready()
        assert tuple(found) == CHECKS
        return [name for name, reason in found.items() if reason]


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    made = Parts(tmp_path)
    made.metrics.observe({"event": "connected", "level": "info"})
    return made


def test_each_check_fails_and_recovers(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parts.failed() == []
    policy = parts.site.folder.policy
    good = policy.read_text()

    def broken(name: str, breaks: Callable[[], object], mends: Callable[[], object]) -> None:
        breaks()
        assert parts.failed() == [name]
        mends()
        assert parts.failed() == []

    broken("policy", lambda: policy.write_text("x"), lambda: policy.write_text(good))
    broken(
        "ledger",
        lambda: setattr(parts, "error", EnvironmentProblem("no")),
        lambda: setattr(parts, "error", None),
    )
    broken(
        "trainer",
        lambda: setattr(parts, "trainer_runs", False),
        lambda: setattr(parts, "trainer_runs", True),
    )
    broken("credential", lambda: setattr(parts, "expired", True), lambda: setattr(parts, "expired", False))

    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(durable.os, "fsync", full)
        assert parts.failed() == ["disk"]
    assert parts.failed() == []
    with monkeypatch.context() as patched:
        patched.setattr(health_module, "LEAST_FREE_BYTES", 2**62)
        assert parts.failed() == ["disk"]
    assert parts.failed() == []
    assert sorted(path.name for path in parts.site.folder.root.iterdir()) == ["policy.toml"]


def test_a_lost_connection_is_forgiven_for_a_while(parts: Parts) -> None:
    assert parts.failed() == []
    parts.metrics.observe({"event": "not connected", "level": "warning"})
    parts.clock.advance(RECONNECT_SECONDS - 10)
    assert parts.failed() == []
    parts.clock.advance(10)
    assert parts.failed() == ["connection"]
    parts.metrics.observe({"event": "connected", "level": "info"})
    assert parts.failed() == []


def test_the_time_without_a_connection_counts_from_its_loss(parts: Parts) -> None:
    """Whether or not anybody looked while there was one, and however often the agent tries again."""
    for _ in range(2):
        parts.clock.advance(3600)
        parts.metrics.observe({"event": "not connected", "level": "warning"})
        assert parts.failed() == []
        for tries in range(2, 5):
            parts.clock.advance((RECONNECT_SECONDS - 10) / 3)
            parts.metrics.observe({"event": "not connected", "level": "warning", "tries": tries})
        assert parts.failed() == []
        parts.clock.advance(10)
        assert parts.failed() == ["connection"]
        parts.metrics.observe({"event": "connected", "level": "info"})


def test_an_agent_that_was_never_connected(tmp_path: Path) -> None:
    new = Parts(tmp_path)
    new.clock.advance(RECONNECT_SECONDS - health_module.FRESH_SECONDS - 1)
    new.metrics.observe({"event": "not connected", "level": "warning"})
    assert new.failed() == []
    new.clock.advance(1)
    assert new.failed() == ["connection"]
    new.metrics.observe({"event": "connected", "level": "info"})
    assert new.failed() == []


def page(port: int, path: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def test_a_database_that_does_not_answer_is_not_alive(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_module, "CHECK_SECONDS", 0.2)
    hanging = threading.Event()
    served = Monitoring(0, parts.metrics.registry, parts.health.alive, parts.health.ready)
    try:
        assert page(served.port, "/healthz")[0] == page(served.port, "/readyz")[0] == 200
        parts.site.ledger.head = lambda: hanging.wait(10)
        status, body = page(served.port, "/healthz")
        assert status == 503 and not body["ok"] and "no answer" in body["failed"]["answer"]
        hanging.set()
        parts.site.ledger.head = lambda: None
        assert page(served.port, "/healthz")[0] == 200
        with pytest.raises(EnvironmentProblem, match=f"127.0.0.1:{served.port}"):
            Monitoring(served.port, parts.metrics.registry, parts.health.alive, parts.health.ready)
    finally:
        hanging.set()
        served.close()
        parts.health.close()
    assert monitoring.LOOPBACK == "127.0.0.1"
