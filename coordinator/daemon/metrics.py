"""Prometheus metrics. Nothing in them comes from a site's data, and no label grows with the number of sites: labels
are RPCs, statuses, limits, phases, and running studies, which the consortium's root has signed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from prometheus_client import Counter, Gauge, Histogram

from cipherward import __version__
from cipherward.coordinator.api.policy import LIMITS, POLICIES
from cipherward.coordinator.daemon.view import StudyView
from cipherward.coordinator.rounds.state import Phase
from cipherward.monitoring import new_registry

RELEASED, ABORTED = "released", "aborted"
_OTHER_LIMITS = {"GetUpdateChunks": "max_chunks", "PutRelay": "item_bytes"}
"""Limits of one RPC that are no column of the policy table."""
_PHASE_BUCKETS = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14400, 86400)


def _limits() -> Iterator[tuple[str, str]]:
    """Every RPC with each limit that a call of it can exceed. What exceeds ``burst`` is counted as ``per_second``."""
    for rpc, policy in POLICIES.items():
        yield rpc, "caller_open_calls"
        yield from ((rpc, name) for name in LIMITS if name != "burst" and getattr(policy, name) is not None)
        if rpc in _OTHER_LIMITS:
            yield rpc, _OTHER_LIMITS[rpc]


class Metrics:
    """Counters and gauges of one service."""

    def __init__(self) -> None:
        self.registry = new_registry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"cipherward_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"cipherward_{name}", text, labels, registry=self.registry)

        self._calls = counter("calls", "Calls by RPC and gRPC status", "rpc", "status")
        self._limited = counter("calls_limited", "Calls that exceeded that limit", "rpc", "limit")
        self._open = gauge("calls_open", "Calls in progress", "rpc")
        self._bytes = counter("upload_bytes", "Bytes of updates and shares made durable")
        self._rounds = counter("rounds", "Rounds that ended, by how: released or aborted", "outcome")
        self._round = gauge("round", "Number of the present round of a running study", "study")
        self._phase = gauge("round_phase", "1 for the present phase of a running study", "study", "phase")
        self._phase_seconds = Histogram(
            "cipherward_phase_seconds",
            "How long phases of rounds took",
            ["phase"],
            buckets=_PHASE_BUCKETS,
            registry=self.registry,
        )
        self._summed = counter("summed_values", "Encrypted values added up: updates times values in each")
        self._sites = gauge("sites_connected", "Sites with an open watch stream")
        self._studies = gauge("studies_running", "Running studies")
        self._store = gauge("store_wait_seconds", "How long the last look at the store's queue took")
        self._disk = gauge("free_disk_bytes", "Free on the disk of the coordinator's folder")
        self._days = gauge("credential_days", "Whole days until the coordinator's certificate expires")
        self._ready = gauge("ready", "1 while the coordinator can do its work, as /readyz says")
        gauge("build_info", "1; the label says which version runs", "version").labels(__version__).set(1)
        # A series that begins with its first count shows no increase: an alert would miss the first one.
        for outcome in (RELEASED, ABORTED):
            self._rounds.labels(outcome)
        for rpc, limit in _limits():
            self._limited.labels(rpc, limit)

    @contextmanager
    def opened(self, rpc: str) -> Iterator[None]:
        """A call is open as long as the context lasts."""
        gauge = self._open.labels(rpc)
        gauge.inc()
        try:
            yield
        finally:
            gauge.dec()

    def served(self, rpc: str, status: str) -> None:
        """A call ended."""
        self._calls.labels(rpc, status).inc()

    def limited(self, rpc: str, limit: str) -> None:
        """A call exceeded a limit of the policy table."""
        self._limited.labels(rpc, limit).inc()

    def stored(self, count: int) -> None:
        """Bytes of chunks were made durable."""
        self._bytes.inc(count)

    def moved(self, before: StudyView | None, after: StudyView) -> None:
        """A study changed: shows its place, counts what ended with it."""
        old, new = before.state if before else None, after.state
        if old is None or (old.round, old.phase, old.life) != (new.round, new.phase, new.life):
            self._place(after)
        if before is None or old is None or not old.running:
            return
        over = new.round != old.round or not new.running
        if over or new.phase is not old.phase:
            self._phase_seconds.labels(old.phase.value).observe(max(0.0, new.since - old.since))
        if old.phase is Phase.SUM and new.phase is not Phase.SUM and not over:
            self._summed.inc(len(new.contributors) * before.current.length)
        if over:
            self._rounds.labels(RELEASED if new.model_round == old.round else ABORTED).inc()

    def _place(self, view: StudyView) -> None:
        if not view.state.running:
            with suppress(KeyError):  # it was not running when this process began
                self._round.remove(view.name)
                for phase in Phase:
                    self._phase.remove(view.name, phase.value)
            return
        self._round.labels(view.name).set(view.state.round)
        for phase in Phase:
            self._phase.labels(view.name, phase.value).set(phase is view.state.phase)

    def standing(self, sites: int, studies: int) -> None:
        """How many sites watch and studies run."""
        self._sites.set(sites)
        self._studies.set(studies)

    def machine(self, *, free: int, days: int) -> None:
        """Bytes that the disk has, days that the certificate has."""
        self._disk.set(free)
        self._days.set(days)

    def store_waited(self, seconds: float) -> None:
        """For the store's thread."""
        self._store.set(seconds)

    def readiness(self, ready: bool) -> None:
        """As the last look found it."""
        self._ready.set(ready)
