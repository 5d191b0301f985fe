"""Whether the agent can do its work now: checks that are really done, each with a reason when it fails."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from cipherward.durable import explained, write_file
from cipherward.errors import CipherwardError
from cipherward.monitoring import CHECK_SECONDS, LEAST_FREE_BYTES, free_bytes
from cipherward.site_agent.daemon.metrics import SiteMetrics
from cipherward.site_agent.daemon.site import Site
from cipherward.site_agent.policy import load as load_policy

RECONNECT_SECONDS = 120.0
"""An agent that lost its connection, or has just started, is ready for so long: it connects by itself."""
FRESH_SECONDS = 2.0
"""A look is not repeated for this long."""
CHECKS = ("connection", "credential", "policy", "ledger", "trainer", "disk")
_PROBE = ".readiness"


class Health:
    """For the monitoring port; safe to use from several threads."""

    def __init__(self, site: Site, metrics: SiteMetrics) -> None:
        self._site, self._metrics = site, metrics
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="health")
        self._lock = threading.Lock()
        self._looked_at = float("-inf")
        self._found: dict[str, str] = {}
        self._started_at = site.clock.monotonic()

    def alive(self) -> dict[str, str]:
        """Whether the process runs and its database answers; raises TimeoutError."""
        return {"database": self._thread.submit(self._ledger).result(CHECK_SECONDS)}

    def ready(self) -> dict[str, str]:
        """The checks by name; raises TimeoutError."""
        return self._thread.submit(self._look).result(CHECK_SECONDS)

    def is_ready(self) -> bool:
        """No check fails."""
        try:
            return not any(self.ready().values())
        except TimeoutError:
            return False

    def close(self) -> None:
        """Check nothing any more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _look(self) -> dict[str, str]:
        now = self._site.clock.monotonic()
        with self._lock:
            if now - self._looked_at >= FRESH_SECONDS:
                self._found = {
                    "connection": self._connection(now),
                    "credential": self._credential(),
                    "policy": self._policy(),
                    "ledger": self._ledger(),
                    "trainer": "" if self._site.trainer.answers() else "the trainer does not answer",
                    "disk": self._disk(),
                }
                self._looked_at = now
            return self._found

    def _connection(self, now: float) -> str:
        if self._metrics.connected:
            return ""
        lost_at = self._metrics.lost_at
        lost = now - (self._started_at if lost_at is None else lost_at)
        return f"not connected for {lost:.0f} s; the log says why" if lost >= RECONNECT_SECONDS else ""

    def _credential(self) -> str:
        member = self._site.member
        try:
            member.credential.check(self._site.clock.now(), member.status)
        except CipherwardError as error:
            return str(error)
        return ""

    def _policy(self) -> str:
        """As the file is now: it is what the agent starts with next time."""
        try:
            load_policy(self._site.folder.policy)
        except CipherwardError as error:
            return str(error)
        return ""

    def _ledger(self) -> str:
        try:
            self._site.ledger.head()
        except CipherwardError as error:
            return str(error)
        return ""

    def _disk(self) -> str:
        root = self._site.folder.root
        if (free := free_bytes(root)) < LEAST_FREE_BYTES:
            return f"{free // 2**20} MiB are free"
        try:
            write_file(root / _PROBE, bytes(4096), mode=0o600)
            with explained("delete", root / _PROBE):
                (root / _PROBE).unlink(missing_ok=True)
        except CipherwardError as error:
            return str(error)
        return ""
