"""One study's two threads: one takes part in rounds, one serves sealed items to peers, so that a site in
hours of training still answers. Both act on the coordinator's newest snapshot alone; the journal says what
is done already, so that doing it all again after a restart, a lost connection or a repeated snapshot is
harmless.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

from cipherward.errors import (
    BudgetError,
    CipherwardError,
    EnvironmentProblem,
    LateError,
    PolicyError,
    UnavailableError,
    VerificationError,
)
from cipherward.proto.v1.coordinator_pb2 import Phase, StudySnapshot, StudyState
from cipherward.site_agent.daemon.evaluation import evaluate_model
from cipherward.site_agent.daemon.participation import Participation
from cipherward.site_agent.daemon.protections import of_study
from cipherward.site_agent.daemon.release import Release
from cipherward.site_agent.daemon.resync import Resync
from cipherward.site_agent.daemon.revocation import refresh_status_list, require_coordinator_in_force
from cipherward.site_agent.daemon.study import Study
from cipherward.site_agent.daemon.upload import Upload
from cipherward.site_agent.state.faults import explained_database
from cipherward.site_agent.state.studies import ABORTED, FINISHED
from cipherward.wire_names import wire_name

POLL_SECONDS = 2.0
"""Between looks at what no snapshot announces: peers' reports, relayed items."""
REFUSED_SECONDS = 30.0
MAX_BACKOFF_SECONDS = 30.0

_spread = random.SystemRandom()


class StudyLoop:
    """Drives one admitted study until it is stopped or the study has ended."""

    def __init__(self, study: Study, on_end: Callable[[], None]) -> None:
        self._study, self._on_end = study, on_end
        self._protection = of_study(study)
        self._participation = Participation(study, self._protection)
        self._upload = Upload(study, self._protection)
        self._release = Release(study, self._protection)
        self._resync = Resync(study, study.site.clock)
        self._changed = threading.Condition()
        self._snapshot: StudySnapshot | None = None
        self._generation = 0
        self._stopping = False
        self.crashed = False
        self.ended = threading.Event()
        """Set when the study is finished or aborted, and this site has done its part."""
        self._threads = [
            threading.Thread(target=self._run, args=(self._act,), name=f"{study.name}-rounds", daemon=True),
            threading.Thread(target=self._run, args=(self._serve,), name=f"{study.name}-peers", daemon=True),
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def offer(self, snapshot: StudySnapshot) -> None:
        """The newest snapshot; a round that it shows to be over is not trained for any more."""
        with self._changed:
            self._snapshot = snapshot
            self._generation += 1
            self._changed.notify_all()
        training = snapshot.phase == Phase.PHASE_OPEN and snapshot.state == StudyState.STUDY_STATE_RUNNING
        self._participation.abandon(snapshot.round if training else None)

    def stop(self) -> None:
        """Ask the threads to end; training is cancelled."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._participation.abandon(None)

    def join(self, timeout: float) -> None:
        """Wait for the threads, ``timeout`` seconds at most."""
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self, act: Callable[[StudySnapshot], float | None]) -> None:
        try:
            self._follow(act)
        finally:
            if not self._stopping:
                # An error that nobody foresaw ended the thread; Python prints it. Half an agent is worse
                # than none: it ends, and its supervisor starts it again.
                self.crashed = True
                self._on_end()

    def _follow(self, act: Callable[[StudySnapshot], float | None]) -> None:
        seen, failures = -1, 0
        wait: float | None = None
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._generation != seen, wait)  # noqa: B023
                if self._stopping:
                    return
                snapshot, seen = self._snapshot, self._generation
            if snapshot is None:
                continue
            try:
                with explained_database("keep the study's state"):
                    wait, failures = act(snapshot), 0
            except UnavailableError as error:
                failures += 1
                wait = min(MAX_BACKOFF_SECONDS, POLL_SECONDS * 1.5 ** min(failures, 10)) * _spread.uniform(
                    0.5, 1
                )
                self._study.log.info("waiting", phase=_name(snapshot), reason=str(error))
            except LateError as error:
                wait = None
                self._study.log.warning("too late", round=snapshot.round, reason=str(error))
            except CipherwardError as error:
                wait = REFUSED_SECONDS
                self._refused(snapshot, error)

    def _refused(self, snapshot: StudySnapshot, error: CipherwardError) -> None:
        if self._stopping:
            return
        self._study.log.error("refused", round=snapshot.round, phase=_name(snapshot), error=str(error))
        if isinstance(error, VerificationError | PolicyError | BudgetError):
            try:
                with explained_database("record the incident"):
                    self._study.journal.incident(snapshot.round, str(error))
            except (EnvironmentProblem, UnavailableError) as problem:
                # It is met again at the next look, and recorded when the disk takes it.
                self._study.log.error("not recorded", error=str(problem))

    # Rounds

    def _act(self, snapshot: StudySnapshot) -> float | None:
        """Do everything that the snapshot asks for; returns after how many seconds to look again, if at
        all."""
        if snapshot.state != StudyState.STUDY_STATE_RUNNING:
            return self._finish(snapshot)
        self._check_manifest(snapshot)
        number = snapshot.round
        match snapshot.phase:
            case Phase.PHASE_KEYS:
                self._release.catch_up(number - 1, number)
                self._protection.prepare(self._study.trust(number))
            case Phase.PHASE_OPEN:
                self._release.catch_up(number - 1, number)
                self._study.check_round_record(number, snapshot.round_record_digest)
                refresh_status_list(self._study.site, self._study.client)
                require_coordinator_in_force(self._study.site, self._study.trust(number))
                self._resync.ensure_model(number)
                self._protection.prepare(self._study.trust(number))
                self._evaluate()
                self._participation.train_and_join(number)
            case Phase.PHASE_UPLOAD:
                self._study.check_round_record(number, snapshot.round_record_digest)
                refresh_status_list(self._study.site, self._study.client)
                self._upload.upload_and_commit(number, snapshot.plan_digest)
            case Phase.PHASE_ACKNOWLEDGE:
                if self._upload.takes_part(number, snapshot.plan_digest):
                    self._protection.acknowledge(number)
            case Phase.PHASE_UNSEAL:
                if self._upload.takes_part(number, snapshot.plan_digest):
                    self._protection.unseal(number)
            case Phase.PHASE_RELEASE:
                self._release.catch_up(number, number)
                self._release.report(number)
                # Reports of peers come without a new snapshot.
                self._resync.ensure_model(number)
                self._release.report(number)
                return POLL_SECONDS
            case _:
                self._release.catch_up(number - 1, number)
        return None

    def _check_manifest(self, snapshot: StudySnapshot) -> None:
        trust = self._study.trust(snapshot.round)
        if snapshot.manifest_digest and snapshot.manifest_digest != trust.digest:
            raise VerificationError(
                f"round {snapshot.round} of {self._study.name} runs under a manifest not accepted here"
            )

    def _finish(self, snapshot: StudySnapshot) -> float | None:
        if self.ended.is_set():
            return None
        number = snapshot.round
        self._release.catch_up(number, number)
        # Whether or not the round has an ending record: nothing is answered any more.
        self._protection.forget(number)
        if snapshot.state == StudyState.STUDY_STATE_FINISHED:
            self._resync.ensure_model(number, ended=True)
            self._evaluate()
            self._study.site.studies.set_state(self._study.name, FINISHED)
            self._study.log.info("study finished")
        else:
            self._study.site.studies.set_state(self._study.name, ABORTED, snapshot.reason)
            self._study.log.warning("study aborted", reason=snapshot.reason)
        self.ended.set()
        self._on_end()
        return None

    def _evaluate(self) -> None:
        evaluate_model(self._study)

    # Peers

    def _serve(self, snapshot: StudySnapshot) -> float | None:
        waiting = False
        if snapshot.keys_wanted_by or snapshot.model_wanted_by:
            refresh_status_list(self._study.site, self._study.client)
        if snapshot.keys_wanted_by and snapshot.state == StudyState.STUDY_STATE_RUNNING:
            self._protection.serve(self._study.trust(snapshot.round), list(snapshot.keys_wanted_by))
        if snapshot.model_wanted_by:
            ended = snapshot.state != StudyState.STUDY_STATE_RUNNING
            waiting = self._resync.serve(snapshot.round, list(snapshot.model_wanted_by), ended=ended)
        return POLL_SECONDS if waiting else None


def _name(snapshot: StudySnapshot) -> str:
    return wire_name(Phase, snapshot.phase, "PHASE_")
