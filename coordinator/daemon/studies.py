"""All studies of this coordinator: the one place where their state changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

import structlog

from cipherward.clock import Clock
from cipherward.coordinator.blobs.blobs import Blobs
from cipherward.coordinator.daemon.manifests import read_manifest
from cipherward.coordinator.daemon.recording import Afterwards, Recorder
from cipherward.coordinator.daemon.retention import Retention
from cipherward.coordinator.daemon.view import StudyView, Version
from cipherward.coordinator.daemon.writer import Writer
from cipherward.coordinator.rounds import machine
from cipherward.coordinator.rounds.effects import Effect, StartSum
from cipherward.coordinator.rounds.events import Event, Restarted, Ticked
from cipherward.coordinator.rounds.state import State, StudyRules
from cipherward.coordinator.store.chunks import Segment
from cipherward.coordinator.store.database import Store, Transaction
from cipherward.coordinator.store.studies import StudyRow, require_record
from cipherward.crypto.labels import Label
from cipherward.crypto.pki.store import Member
from cipherward.crypto.records import verify_plan
from cipherward.crypto.signing import record_digest
from cipherward.crypto.transcript import transcript_start
from cipherward.errors import CipherwardError, EnvironmentProblem, IdentityError
from cipherward.ids import Identity, Role
from cipherward.proto.v1.coordinator_pb2 import RECORD_KIND_CLOSE, RECORD_KIND_PLAN, RECORD_KIND_ROUND

log = structlog.get_logger()

Changed = Callable[[StudyView | None, StudyView], None]
SumStarter = Callable[[str, StartSum], None]


def rules_of(versions: Sequence[Version]) -> StudyRules:
    """What the state machine needs of all versions."""
    return StudyRules(tuple(version.rules() for version in versions))


class Studies:
    """Views of all studies, changed by events only."""

    def __init__(
        self,
        member: Member,
        store: Store,
        blobs: Blobs,
        writer: Writer,
        clock: Clock,
        keep_rounds: int | None = None,
    ) -> None:
        self._member, self._store, self._blobs, self._writer, self._clock = (
            member,
            store,
            blobs,
            writer,
            clock,
        )
        self._retention = Retention(keep_rounds)
        self._recorder = Recorder(member.signing_key, str(member.identity), clock, self._retention)
        self._views: dict[str, StudyView] = {}
        self.on_change: list[Changed] = []
        self.start_sum: SumStarter = lambda _study, _effect: None

    @property
    def views(self) -> list[StudyView]:
        """All studies, as they stand."""
        return list(self._views.values())

    def get(self, study: str) -> StudyView | None:
        """The study of that name."""
        return self._views.get(study)

    def require(self, study: str) -> StudyView:
        """The study of that name; raises IdentityError."""
        view = self._views.get(study)
        if view is None:
            raise IdentityError(
                f"study {study[:80]!r} is not known here", fix="Check its name, and that it was started"
            )
        return view

    async def load(self) -> None:
        """Read all studies from the store, start their deadlines anew, and start what is owed."""
        await self._writer.run(self._load)
        for view in self.views:
            await self.apply(view.name, Restarted())
            if (effect := machine.owed(self.require(view.name).state)) is not None:
                self.start_sum(view.name, effect)

    def _load(self) -> None:
        with self._store.transaction() as t:
            for row in t.studies.all():
                self._views[row.study] = view = self._read(t, row)
                # Fewer rounds may be kept than when the service last ran. Their blobs are swept below.
                ended = row.state.round - row.state.running
                self._retention.expire(t, row.study, view.version(ended).trust, ended)
        with self._store.transaction() as t:
            used = t.chunks.blobs()
            self._blobs.claim(self._store.name, used)
            stray = self._blobs.sweep(used)
        log.info("studies loaded", studies=len(self._views), stray_blobs=stray)

    def _read(self, t: Transaction, row: StudyRow) -> StudyView:
        versions = [
            read_manifest(signed, self._member.anchor, self._member.credential)
            for signed in t.studies.manifests(row.study)
        ]
        view = StudyView(
            row.study,
            row.state,
            versions,
            rules_of(versions),
            row.transcript,
            row.weights,
            model_wanted_by=t.relay.requests(row.study),
        )
        number = row.state.round
        if opened := t.studies.record(row.study, number, RECORD_KIND_ROUND):
            view = replace(view, round_record=record_digest(Label.ROUND_RECORD, opened))
        if view.round_record and (planned := t.studies.record(row.study, number, RECORD_KIND_PLAN)):
            trust = view.version(number).trust
            view = replace(view, plan=verify_plan(planned, trust, view.round_record, number))
        if row.state.contributors and row.state.running and row.state.phase.value in ("unseal", "release"):
            closed = require_record(
                t.studies.record(row.study, number, RECORD_KIND_CLOSE), f"close record of round {number}"
            )
            view = replace(view, close=record_digest(Label.CLOSE_RECORD, closed))
        return view

    async def create(self, version: Version, weights: str, segments: Sequence[Segment]) -> StudyView:
        """A new study with its first manifest and initial weights, all in one transaction. As ``apply``, it is not
        stopped by a caller that is cancelled."""
        return await asyncio.shield(self._create(version, weights, segments))

    async def _create(self, version: Version, weights: str, segments: Sequence[Segment]) -> StudyView:
        manifest = version.trust.manifest

        def run() -> tuple[StudyView, Afterwards]:
            rules, after = rules_of([version]), Afterwards()
            state, effects = machine.start(rules, manifest.initial_weights_digest, self._clock.monotonic())
            first = transcript_start(manifest.study, version.trust.digest)
            view = StudyView(manifest.study, state, [version], rules, first, weights)
            with self._store.transaction() as t:
                t.studies.create(StudyRow(view.name, state, first, weights))
                t.studies.add_manifest(view.name, version.number, version.trust.digest, version.signed)
                for segment in segments:
                    t.chunks.add(weights, segment)
                view = self._write(t, view, effects, after)
            self._views[view.name] = view
            return view, after

        view, after = await self._writer.run(run)
        self._notify(None, view)
        self._afterwards(view.name, after)
        return view

    async def add_version(self, study: str, version: Version, event: Event) -> StudyView:
        """One more version of the manifest, in force from its first round."""

        def also(t: Transaction) -> None:
            t.studies.add_manifest(study, version.number, version.trust.digest, version.signed)

        def changed(view: StudyView) -> StudyView:
            versions = [*view.versions, version]
            return replace(view, versions=versions, rules=rules_of(versions))

        return await self.apply(study, event, also, changed)

    async def apply(
        self,
        study: str,
        event: Event,
        also: Callable[[Transaction], None] | None = None,
        changed: Callable[[StudyView], StudyView] | None = None,
    ) -> StudyView:
        """Let ``event`` happen, and ``also`` in the same transaction; returns the view after it.

        ``changed`` makes the view that the event meets. Nothing has happened if it raises. Raises
        ProtocolError for what the state does not allow, EnvironmentProblem, and what ``also`` raises. A caller that
        is cancelled does not stop it: what is committed has its consequences, e.g. the sum that begins.
        """
        return await asyncio.shield(self._apply(study, event, also, changed))

    async def _apply(
        self,
        study: str,
        event: Event,
        also: Callable[[Transaction], None] | None,
        changed: Callable[[StudyView], StudyView] | None,
    ) -> StudyView:
        after = Afterwards()

        def run() -> tuple[StudyView, StudyView]:
            before = self._views[study]
            view = before if changed is None else changed(before)
            state, effects = machine.step(view.rules, view.state, event, self._clock.monotonic())
            if state is view.state and not effects and also is None and view is before:
                return before, before
            view = replace(view, state=state)
            with self._store.transaction() as t:
                if also is not None:
                    also(t)
                view = self._write(t, view, effects, after)
                view = replace(view, model_wanted_by=t.relay.requests(study))
            self._views[study] = view
            return before, view

        before, view = await self._writer.run(run)
        self._log(before.state, view)
        self._notify(before, view)
        self._afterwards(study, after)
        return view

    def _write(
        self, t: Transaction, view: StudyView, effects: Sequence[Effect], after: Afterwards
    ) -> StudyView:
        view = self._recorder.perform(t, view, effects, after)
        t.studies.save(view.name, view.state, view.transcript)
        return view

    async def tick(self) -> None:
        """Let time pass: deadlines are looked at, and written down only if one has come."""
        now = self._clock.monotonic()
        for view in self.views:
            if machine.step(view.rules, view.state, Ticked(), now)[0] is not view.state:
                try:
                    await self.apply(view.name, Ticked())
                except CipherwardError as error:
                    # What stops one study must not stop the time of the others.
                    log.error("a study does not move", study=view.name, reason=str(error))

    def revoked_sites(self, view: StudyView) -> frozenset[str]:
        """Sites of the study that the status list in force names."""
        named = {revocation.identity for revocation in self._member.status.newest.revoked.values()}
        consortium = self._member.identity.consortium
        sites = {site for version in view.versions for site in version.trust.sites}
        return frozenset(site for site in sites if str(Identity(consortium, Role.SITE, site)) in named)

    def _notify(self, before: StudyView | None, view: StudyView) -> None:
        for listener in self.on_change:
            listener(before, view)

    def _afterwards(self, study: str, after: Afterwards) -> None:
        for effect in after.sums:
            self.start_sum(study, effect)
        if after.blobs:
            # A blob that cannot be deleted now is swept at the next start.
            asyncio.get_running_loop().run_in_executor(None, self._delete, after.blobs)

    def _delete(self, blobs: list[str]) -> None:
        try:
            self._blobs.delete(blobs)
        except EnvironmentProblem as error:
            log.warning("blobs not deleted", reason=str(error))

    def _log(self, before: State, view: StudyView) -> None:
        state = view.state
        if (before.round, before.phase, before.life) != (state.round, state.phase, state.life):
            log.info(
                "study moved",
                study=view.name,
                round=state.round,
                phase=state.phase.value,
                life=state.life.value,
                reason=state.reason,
            )
