"""Prometheus metrics, on a port of the loopback interface only. Nothing in them comes from a site's data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from cipherward.coordinator.daemon.view import StudyView
from cipherward.durable import explained


class Metrics:
    """Counters and gauges of one service."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._calls = Counter(
            "cipherward_calls", "RPCs by name and outcome", ["rpc", "status"], registry=self._registry
        )
        self._open = Gauge("cipherward_calls_open", "Calls in progress", ["rpc"], registry=self._registry)
        self._limited = Counter(
            "cipherward_calls_limited",
            "Calls that exceeded a limit of the policy table",
            ["rpc", "limit"],
            registry=self._registry,
        )
        self._bytes = Counter("cipherward_upload_bytes", "Bytes of stored chunks", registry=self._registry)
        self._rounds = Counter("cipherward_rounds", "Rounds by outcome", ["outcome"], registry=self._registry)
        self._sites = Gauge("cipherward_sites_connected", "Open watch streams", registry=self._registry)
        self._studies = Gauge("cipherward_studies_running", "Running studies", registry=self._registry)

    @contextmanager
    def opened(self, rpc: str) -> Iterator[None]:
        """A call is open as long as the context lasts."""
        gauge = self._open.labels(rpc)
        gauge.inc()
        try:
            yield
        finally:
            gauge.dec()

    def limited(self, rpc: str, limit: str) -> None:
        """A call exceeded a limit of the policy table."""
        self._limited.labels(rpc, limit).inc()

    def served(self, rpc: str, status: str) -> None:
        """A call ended."""
        self._calls.labels(rpc, status).inc()

    def stored(self, count: int) -> None:
        """Bytes of chunks were made durable."""
        self._bytes.inc(count)

    def moved(self, before: StudyView | None, after: StudyView) -> None:
        """A study changed; counts the round that ended with it."""
        if before is None or not before.state.running:
            return
        if after.state.round == before.state.round and after.state.running:
            return
        released = after.state.model_round == before.state.round
        self._rounds.labels("released" if released else "aborted").inc()

    def standing(self, sites: int, studies: int) -> None:
        """How many sites watch and studies run."""
        self._sites.set(sites)
        self._studies.set(studies)

    def serve(self, port: int) -> int:
        """Serve them on 127.0.0.1; returns the port. EnvironmentProblem if it is taken."""
        with explained("serve metrics on", f"127.0.0.1:{port}"):
            server, _thread = start_http_server(port, addr="127.0.0.1", registry=self._registry)
        return int(server.server_port)
