"""What operators are shown of a study: steps of sites and figures of rounds, nothing about anyone's data."""

from __future__ import annotations

from cipherward.coordinator.daemon.core import Core
from cipherward.coordinator.daemon.view import StudyView
from cipherward.coordinator.daemon.watching import life_of, phase_of
from cipherward.coordinator.store.studies import RoundFigures
from cipherward.proto.v1.coordinator_pb2 import RoundStatus, SiteStatus, StudyStatus


async def study_status(core: Core, view: StudyView) -> StudyStatus:
    """Where the study stands, its sites, and the rounds that have ended."""
    history = await core.writer.transaction(lambda t: t.studies.history(view.name))
    manifest = view.current.trust.manifest
    return StudyStatus(
        study=view.name,
        state=life_of(view),
        round=view.state.round,
        rounds=manifest.rounds,
        phase=phase_of(view),
        sites=[_site(core, view, name) for name in view.current.trust.sites],
        history=[_round(core, view, figures) for figures in history if _ended(view, figures)],
        reason=view.state.reason,
        suite=manifest.suite.name,
        parameters=manifest.suite.parameters,
        parameter_count=manifest.parameter_count,
    )


def _site(core: Core, view: StudyView, name: str) -> SiteStatus:
    state, presence = view.state, core.presence.of(name)
    chunks = core.presence.chunks(view.name, state.round, name)
    if name in state.reports:
        step = "reported"
    elif name in state.answers:
        step = "answered"
    elif name in state.acknowledgements:
        step = "acknowledged"
    elif name in state.commits:
        step = "committed"
    elif chunks:
        step = "uploading"
    else:
        step = "joined" if name in state.joins else "waiting"
    return SiteStatus(
        name=name,
        connected=presence.streams > 0,
        last_seen=int(presence.last_seen),
        step=step,
        chunks_stored=chunks,
        problem=presence.problem,
    )


def _ended(view: StudyView, figures: RoundFigures) -> bool:
    return figures.round < view.state.round or not view.state.running


def _round(core: Core, view: StudyView, figures: RoundFigures) -> RoundStatus:
    up, down = core.traffic.pending(view.name, figures.round)
    end = figures.reported_at
    return RoundStatus(
        round=figures.round,
        contributors=figures.contributors,
        bytes_up=figures.bytes_up + up,
        bytes_down=figures.bytes_down + down,
        seconds=end - figures.opened_at if end else 0.0,
        seconds_after_join=end - figures.planned_at if end and figures.planned_at else 0.0,
        aborted=figures.aborted,
        reason=figures.reason,
    )
