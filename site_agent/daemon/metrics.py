"""Prometheus metrics of an agent. They are counted from the lines of its log, so that the two cannot disagree; what
the machine and the ledger say is asked when somebody looks.

Some of it is the hospital's own affair (the privacy budget spent on its data sets): the port is on the loopback
interface, and nothing of this is ever sent to the coordinator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

from prometheus_client import Counter, Gauge, Summary
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from structlog.typing import EventDict

from cipherward import __version__
from cipherward.clock import Clock, SystemClock
from cipherward.errors import CipherwardError
from cipherward.monitoring import free_bytes, new_registry
from cipherward.proto.v1.coordinator_pb2 import Phase, StudySnapshot, StudyState
from cipherward.site_agent.daemon.site import Site
from cipherward.site_agent.ledger.chain import Kind
from cipherward.site_agent.ledger.report import epsilon_left
from cipherward.site_agent.policy import limits
from cipherward.wire_names import wire_name

PHASES = tuple(name.removeprefix("PHASE_").lower() for name in Phase.keys() if name != "PHASE_UNSPECIFIED")  # noqa: SIM118  no dict


class SiteMetrics:
    """Counters and gauges of one agent. Labels: levels of the log, phases, studies that the consortium's root has
    signed for this site, and its own data sets. ``clock`` is the machine's own unless another is given."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.registry = new_registry()
        self._clock = clock or SystemClock()
        self.connected = False
        self.lost_at: float | None = None
        """When the connection was last lost, in monotonic seconds of the clock; None if it never was."""

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"cipherward_site_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"cipherward_site_{name}", text, labels, registry=self.registry)

        self._lines = counter("log_lines", "Lines of the log, by level", "level")
        self._connected = gauge("connected", "1 while the coordinator sends this site its studies")
        self._contact = gauge("last_contact_timestamp_seconds", "When the coordinator last sent something")
        self._round = gauge("round", "Number of the present round of a running study", "study")
        self._phase = gauge("round_phase", "1 for the present phase of a running study", "study", "phase")
        self._finished = gauge("last_round_timestamp_seconds", "When this site last applied a round's sum")
        self._training = Summary(
            "cipherward_site_training_seconds", "How long training took", registry=self.registry
        )
        self._events = {
            "not connected": counter("connects_failed", "Tries to connect that failed, and lost connections"),
            "waiting": counter("retries", "Steps that could not be done yet and are tried again"),
            "refused": counter("refusals", "Steps of a study that this site refused"),
            "study refused": counter("studies_refused", "Manifests that this site refused"),
            "round finished": counter("rounds_finished", "Rounds whose sum this site applied"),
            "round aborted": counter("rounds_aborted", "Rounds that ended without a sum"),
            "the sum is refused": counter("sums_refused", "Sums that did not verify"),
        }
        gauge("build_info", "1; the label says which version runs", "version").labels(__version__).set(1)

    def observe(self, event: EventDict) -> None:
        """A line is about to be logged."""
        name = event["event"]
        self._lines.labels(event["level"]).inc()
        if found := self._events.get(name):
            found.inc()
        if name in ("connected", "not connected"):
            if self.connected and name == "not connected":  # and not at each try that fails after it
                self.lost_at = self._clock.monotonic()  # first: who sees the loss in another thread sees when
            self.connected = name == "connected"
            self._connected.set(self.connected)
        if name == "connected":
            self._contact.set_to_current_time()
        elif name == "round finished":
            self._finished.set_to_current_time()
        elif name == "trained":
            self._training.observe(event["seconds"])

    def heard(self, snapshot: StudySnapshot, *, admitted: bool) -> None:
        """The coordinator sent where a study stands. One that is not admitted gets no label: its name is only what
        the coordinator says."""
        self._contact.set_to_current_time()
        if not admitted:
            return
        name = snapshot.study
        if snapshot.state != StudyState.STUDY_STATE_RUNNING:
            with suppress(KeyError):  # it was not running when this process began
                self._round.remove(name)
                for phase in PHASES:
                    self._phase.remove(name, phase)
            return
        self._round.labels(name).set(snapshot.round)
        now = wire_name(Phase, snapshot.phase, "PHASE_")
        for phase in PHASES:
            self._phase.labels(name, phase).set(phase == now)

    def ask(self, site: Site, ready: Callable[[], bool]) -> None:
        """Let what the machine and the ledger say be asked at every look."""
        self.registry.register(_Asked(site, ready))


class _Asked(Collector):
    """Figures that are there to be read, and need no counting."""

    def __init__(self, site: Site, ready: Callable[[], bool]) -> None:
        self._site, self._ready = site, ready
        self._head = b""
        self._budgets: list[tuple[str, float, float, float, int]] = []

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Names without values, so that nothing is asked at the registration."""
        return [*self._machine(), *self._families()]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """At every look. Where the ledger cannot be read, its figures are left out; /readyz says why."""
        site = self._site
        free, days, ready = self._machine()
        free.add_metric([], free_bytes(site.folder.root))
        days.add_metric([], site.member.days_left(site.clock.now()))
        ready.add_metric([], self._ready())
        yield from (free, days, ready)
        families = self._families()
        with suppress(CipherwardError):
            for name, *values in self._read_budgets():
                for family, value in zip(families, values, strict=True):
                    family.add_metric([name], value)
        yield from families

    def _machine(self) -> tuple[GaugeMetricFamily, ...]:
        return (
            GaugeMetricFamily("cipherward_site_free_disk_bytes", "Free on the disk of the site's folder"),
            GaugeMetricFamily("cipherward_site_credential_days", "Whole days until the certificate expires"),
            GaugeMetricFamily("cipherward_site_ready", "1 while the agent can do its work, as /readyz says"),
        )

    def _families(self) -> tuple[GaugeMetricFamily, ...]:
        def family(name: str, text: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"cipherward_site_{name}", text, labels=["data_set"])

        return (
            family("epsilon_spent", "Privacy spent on a data set, at the policy's delta"),
            family("epsilon_left", "Privacy left of the policy's ceiling"),
            family("epsilon_ceiling", "The policy's ceiling"),
            family("reservations_lost", "Rounds paid for whose update was in no sum"),
        )

    def _read_budgets(self) -> list[tuple[str, float, float, float, int]]:
        ledger, policy = self._site.ledger, self._site.policy
        head = ledger.head().digest
        if head != self._head:  # the accountant computes for a second
            found = []
            for name in policy.datasets:
                if name not in {known.name for known in ledger.datasets()}:
                    continue
                bounds = limits(policy, name, ledger)
                spent = ledger.spent(name, bounds.delta)
                left = epsilon_left(bounds.ceiling, spent)
                found.append((name, spent, left, bounds.ceiling, ledger.count(Kind.LOST, name)))
            self._head, self._budgets = head, found
        return self._budgets
