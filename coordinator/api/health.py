"""grpc.health.v1, for members only: SERVING while the coordinator is ready."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping

from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from cipherward.coordinator.api.dispatch import SERVICE, Call, Streaming, Unary
from cipherward.coordinator.daemon.readiness import Readiness
from cipherward.errors import NotFoundError

WATCH_SECONDS = 15.0
"""A watcher is told again, so that a dead one is noticed."""


class Health:
    """The standard service."""

    def __init__(self, readiness: Readiness, draining: asyncio.Event) -> None:
        self._readiness, self._draining = readiness, draining

    def handlers(self) -> Mapping[str, Unary | Streaming]:
        """By their names in the policy table."""
        return {"Health.Check": self.check, "Health.Watch": self.watch}

    async def check(self, call: Call, request: HealthCheckRequest) -> HealthCheckResponse:
        """Whether the coordinator is ready now."""
        self._require(request)
        await self._readiness.look()
        return self._status()

    async def watch(
        self, call: Call, request: HealthCheckRequest
    ) -> AsyncGenerator[HealthCheckResponse, None]:
        """Whether it is ready, now and at every change."""
        self._require(request)
        while not self._draining.is_set():
            changed = self._readiness.changed
            yield self._status()
            try:
                await asyncio.wait_for(changed.wait(), WATCH_SECONDS)
            except TimeoutError:
                continue
        yield self._status()

    def _status(self) -> HealthCheckResponse:
        ready = self._readiness.ready
        return HealthCheckResponse(
            status=HealthCheckResponse.SERVING if ready else HealthCheckResponse.NOT_SERVING
        )

    def _require(self, request: HealthCheckRequest) -> None:
        if request.service not in ("", SERVICE.full_name):
            raise NotFoundError(f"no service {request.service[:80]!r} is known here")
