"""Streams that tell at every change where studies stand. Level-triggered: only the newest matters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from cipherward.coordinator.api.dispatch import Call
from cipherward.coordinator.api.status import study_status
from cipherward.coordinator.daemon.core import Core
from cipherward.proto.v1.coordinator_pb2 import (
    StudySnapshot,
    StudyStatus,
    StudyStatusRequest,
    WatchWorkRequest,
)

HEARTBEAT_SECONDS = 15.0
COALESCE_SECONDS = 0.05
OPERATOR_SECONDS = 0.5
"""An operator is shown at most two states a second."""


class Watch:
    """See the service's definition."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def work(self, call: Call, request: WatchWorkRequest) -> AsyncGenerator[StudySnapshot, None]:
        """One snapshot of each study of the caller at once, and at every change; all of them as heartbeat."""
        core, name = self._core, call.name
        sent: dict[str, StudySnapshot] = {}
        loop, quiet_until = asyncio.get_running_loop(), 0.0
        with core.watching.watch(name) as woken:
            core.presence.watching(name, +1)
            try:
                while not core.watching.draining.is_set():
                    # The first change is told at once, those that follow upon it together.
                    await asyncio.sleep(max(0.0, quiet_until - loop.time()))
                    woken.clear()
                    for view in core.watching.of_site(name):
                        snapshot = core.watching.snapshot(view, name)
                        if sent.get(view.name) != snapshot:
                            sent[view.name] = snapshot
                            quiet_until = loop.time() + COALESCE_SECONDS
                            timed = core.watching.timed(snapshot, view)
                            core.traffic.down(view.name, view.state.round, timed)
                            yield timed
                    if not await _woken(woken, HEARTBEAT_SECONDS):
                        sent.clear()
                        core.presence.seen(name)
            finally:
                core.presence.watching(name, -1)
                core.watching.wake_operators()

    async def study(self, call: Call, request: StudyStatusRequest) -> AsyncGenerator[StudyStatus, None]:
        """The status of one study, or of all, at every change."""
        core = self._core
        if request.study:
            core.studies.require(request.study)
        sent: dict[str, StudyStatus] = {}
        with core.watching.watch(None) as woken:
            while not core.watching.draining.is_set():
                woken.clear()
                for view in core.studies.views:
                    if request.study in ("", view.name):
                        status = await study_status(core, view)
                        if sent.get(view.name) != status:
                            sent[view.name] = status
                            yield status
                if not await _woken(woken, HEARTBEAT_SECONDS):
                    sent.clear()
                else:
                    await asyncio.sleep(OPERATOR_SECONDS)


async def _woken(event: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True
