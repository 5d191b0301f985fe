"""The port that both daemons give to the hospital's own monitoring: ``/metrics`` for Prometheus, ``/healthz`` (is the
process alive) and ``/readyz`` (can it do its work now). On the loopback interface only: nothing on it is secret,
and nothing on it is for others."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from cipherward import __version__
from cipherward.durable import explained

LOOPBACK = "127.0.0.1"
CLIENT_SECONDS = 5.0
"""For a client to send its request and take the answer."""
CHECK_SECONDS = 10.0
"""For a check to answer; one that does not has failed."""

LEAST_FREE_BYTES = 64 * 2**20
"""On the disk of a daemon's folder: below it the daemon is not ready, though nothing has failed yet."""

Check = Callable[[], Mapping[str, str]]
"""Checks by name, each empty or the reason that it fails. May block, and may raise TimeoutError."""


def free_bytes(folder: Path) -> int:
    """Free for this process on the folder's disk; 0 where that cannot be told."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def new_registry() -> CollectorRegistry:
    """With what every process has: memory, CPU, open files, start time."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return registry


class Monitoring:
    """The HTTP server, in threads of its own, until ``close``."""

    def __init__(self, port: int, registry: CollectorRegistry, alive: Check, ready: Check) -> None:
        """Port 0 takes any free one. Raises EnvironmentProblem if it is taken."""
        pages = {
            "/metrics": lambda: (200, CONTENT_TYPE_LATEST, generate_latest(registry)),
            "/healthz": lambda: _report(alive),
            "/readyz": lambda: _report(ready),
        }
        with explained("serve metrics and health on", f"{LOOPBACK}:{port}"):
            self._server = _Server((LOOPBACK, port), _handler(pages))
        self.port = int(self._server.server_port)
        self._thread = threading.Thread(target=self._server.serve_forever, name="monitoring", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True


Page = Callable[[], tuple[int, str, bytes]]


def _report(check: Check) -> tuple[int, str, bytes]:
    try:
        found = dict(check())
    except (TimeoutError, CancelledError, RuntimeError) as error:
        found = {"answer": f"no answer: {type(error).__name__}"}
    failed = {name: reason for name, reason in found.items() if reason}
    body = {"ok": not failed, "version": __version__, "checks": sorted(found), "failed": failed}
    return 503 if failed else 200, "application/json", (json.dumps(body) + "\n").encode()


def _handler(pages: Mapping[str, Page]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = CLIENT_SECONDS
        server_version = sys_version = ""

        def do_GET(self) -> None:
            """One page, then the connection is closed (HTTP/1.0)."""
            page = pages.get(self.path.partition("?")[0])
            status, kind, body = page() if page else (404, "text/plain", b"/metrics, /healthz or /readyz\n")
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: the daemon's log is for the daemon."""

    return Handler
