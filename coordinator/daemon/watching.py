"""Snapshots of studies, and waking those who watch them.

A snapshot is made once per change of a study, not once per watcher; a watcher is woken only when its snapshot
differs, so that 1,000 joins do not become 1,000,000 messages.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from cipherward.clock import Clock
from cipherward.coordinator.daemon.studies import Studies
from cipherward.coordinator.daemon.view import StudyView
from cipherward.coordinator.rounds.machine import keys_missing, seconds_left
from cipherward.coordinator.rounds.state import Life, Phase
from cipherward.proto.v1 import coordinator_pb2 as pb

_LIVES = {
    Life.RUNNING: pb.STUDY_STATE_RUNNING,
    Life.FINISHED: pb.STUDY_STATE_FINISHED,
    Life.ABORTED: pb.STUDY_STATE_ABORTED,
}
_PHASES = {
    Phase.KEYS: pb.PHASE_KEYS,
    Phase.OPEN: pb.PHASE_OPEN,
    Phase.UPLOAD: pb.PHASE_UPLOAD,
    Phase.ACKNOWLEDGE: pb.PHASE_ACKNOWLEDGE,
    Phase.SUM: pb.PHASE_SUM,
    Phase.UNSEAL: pb.PHASE_UNSEAL,
    Phase.RELEASE: pb.PHASE_RELEASE,
}


def life_of(view: StudyView) -> pb.StudyState.ValueType:
    """The study's state on the wire."""
    return _LIVES[view.state.life]


def phase_of(view: StudyView) -> pb.Phase.ValueType:
    """The round's phase on the wire."""
    if view.state.life is Life.ABORTED:
        return pb.PHASE_ABORTED
    return _PHASES[view.state.phase]


def _common(view: StudyView) -> pb.StudySnapshot:
    current = view.current
    return pb.StudySnapshot(
        study=view.name,
        state=life_of(view),
        manifest_digest=current.trust.digest,
        manifest_version=current.number,
        round=view.state.round,
        phase=phase_of(view),
        round_record_digest=view.round_record or b"",
        plan_digest=view.plan.digest if view.plan else b"",
        close_digest=view.close or b"",
        reason=view.state.reason,
    )


class Watching:
    """Who watches which study."""

    def __init__(self, studies: Studies, clock: Clock) -> None:
        self._studies, self._clock = studies, clock
        self._made: dict[str, tuple[StudyView, pb.StudySnapshot]] = {}
        self._sites: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._operators: set[asyncio.Event] = set()
        self.draining = asyncio.Event()
        studies.on_change.append(self._changed)

    def snapshot(self, view: StudyView, site: str) -> pb.StudySnapshot:
        """Where the study stands, for one site; without the time left."""
        made = self._made.get(view.name)
        if made is None or made[0] is not view:
            made = view, _common(view)
            self._made[view.name] = made
        keys = self._keys_wanted(view, site)
        models = [name for name in view.model_wanted_by if name != site]
        if not keys and not models:
            return made[1]
        own = pb.StudySnapshot()
        own.CopyFrom(made[1])
        own.keys_wanted_by.extend(keys)
        own.model_wanted_by.extend(models)
        return own

    def _keys_wanted(self, view: StudyView, site: str) -> tuple[str, ...]:
        wanted = (
            view.state.running
            and view.state.phase is Phase.KEYS
            and view.current.trust.manifest.suite.key_maker == site
        )
        return keys_missing(view.rules, view.state, view.state.round) if wanted else ()

    def timed(self, snapshot: pb.StudySnapshot, view: StudyView) -> pb.StudySnapshot:
        """A copy with the seconds left of the phase."""
        copy = pb.StudySnapshot()
        copy.CopyFrom(snapshot)
        copy.seconds_left = int(seconds_left(view.rules, view.state, self._clock.monotonic()) or 0)
        return copy

    def of_site(self, site: str) -> list[StudyView]:
        """Studies that name the site."""
        return [view for view in self._studies.views if view.names(site)]

    @contextmanager
    def watch(self, site: str | None) -> Iterator[asyncio.Event]:
        """An event that is set at every change for the site (None: an operator's), and on drain."""
        woken = asyncio.Event()
        group = self._operators if site is None else self._sites[site]
        group.add(woken)
        try:
            yield woken
        finally:
            group.discard(woken)
            if site is not None and not group:
                self._sites.pop(site, None)

    def wake_operators(self) -> None:
        """Something changed that only operators are shown."""
        for woken in self._operators:
            woken.set()

    def drain(self) -> None:
        """End all watch streams."""
        self.draining.set()
        for group in [*self._sites.values(), self._operators]:
            for woken in group:
                woken.set()

    def _changed(self, before: StudyView | None, view: StudyView) -> None:
        self.wake_operators()
        if before is view:
            return
        # Everybody's snapshot changed, or at most the key maker's.
        everybody = (
            before is None
            or _common(before) != _common(view)
            or before.model_wanted_by != view.model_wanted_by
        )
        maker = view.current.trust.manifest.suite.key_maker
        for site in view.current.trust.sites if everybody else (maker,):
            for woken in self._sites.get(site, ()):
                woken.set()
