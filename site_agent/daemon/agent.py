"""The daemon: start order, the studies' loops, and a clean end.

The trainer server is started before any key is loaded, so that no process that runs task code was ever
forked from one with keys in memory.
"""

from __future__ import annotations

import resource
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from structlog.typing import FilteringBoundLogger

from cipherward.clock import Clock
from cipherward.crypto.pki.site_keys import load_sealing_key
from cipherward.crypto.pki.store import check_complete, load_member
from cipherward.durable import FolderLock
from cipherward.errors import (
    CipherwardError,
    ConflictError,
    FormatError,
    LimitError,
    PolicyError,
    ProtocolError,
    RollbackError,
    UnavailableError,
    UsageError,
    VerificationError,
)
from cipherward.ids import Role, check_name
from cipherward.monitoring import Monitoring
from cipherward.proto.v1.coordinator_pb2 import HelloReply, StudySnapshot, StudyState
from cipherward.site_agent.client.channel import open_channel
from cipherward.site_agent.client.coordinator import CoordinatorClient
from cipherward.site_agent.daemon.admission import admit
from cipherward.site_agent.daemon.connection import Connection
from cipherward.site_agent.daemon.health import Health
from cipherward.site_agent.daemon.hospital import register_data_sets
from cipherward.site_agent.daemon.metrics import SiteMetrics
from cipherward.site_agent.daemon.notify import notify
from cipherward.site_agent.daemon.rollback import check_own_commit
from cipherward.site_agent.daemon.site import Site
from cipherward.site_agent.daemon.study import Study
from cipherward.site_agent.daemon.study_loop import StudyLoop
from cipherward.site_agent.ledger.accountant import ServedAccountant
from cipherward.site_agent.ledger.ledger import Ledger
from cipherward.site_agent.offline import patient_key
from cipherward.site_agent.policy import load as load_policy
from cipherward.site_agent.state.faults import explained_database
from cipherward.site_agent.state.folder import SiteFolder
from cipherward.site_agent.state.models import ModelStore
from cipherward.site_agent.state.opening import open_state
from cipherward.site_agent.state.studies import REFUSED, StudyStore
from cipherward.site_agent.state.tidy import tidy
from cipherward.site_agent.training.client import Trainer

MAX_UNKNOWN_STUDIES = 100
"""That an agent remembers in one run."""
STOP_SECONDS = 12.0
"""For threads to end; systemd and the tests allow 15."""


@dataclass(frozen=True, slots=True)
class Options:
    """Of ``cipherward site run``."""

    folder: Path
    coordinator: str
    trainer_socket: Path | None = None
    once_finished: bool = False
    metrics_port: int | None = None


def open_site(options: Options, trainer: Trainer, clock: Clock, log: FilteringBoundLogger) -> Site:
    """Load keys, policy and state, and check them. The trainer must have been started before."""
    folder = SiteFolder(options.folder)
    member = load_member(options.folder, Role.SITE, clock.now())
    engine = open_state(folder)
    accountant = ServedAccountant(trainer.connect_accountant)
    ledger = Ledger(engine, patient_key(folder), accountant=accountant, clock=clock)
    ledger.verify_chain()
    site = Site(
        folder=folder,
        member=member,
        sealing_key=load_sealing_key(options.folder, member.credential.sealing_key),
        policy=load_policy(folder.policy),
        ledger=ledger,
        engine=engine,
        studies=StudyStore(engine),
        models=ModelStore(folder.models),
        trainer=trainer,
        clock=clock,
        log=log,
    )
    for warning in member.warnings(clock.now()):
        log.warning("credential", reason=warning)
    return site


class Agent:
    """Everything that runs while the daemon runs."""

    def __init__(
        self,
        site: Site,
        client: CoordinatorClient,
        *,
        once_finished: bool,
        metrics: SiteMetrics | None = None,
    ) -> None:
        self._site, self._client, self._once_finished = site, client, once_finished
        self._metrics = metrics or SiteMetrics()
        self._connection = Connection(site, client, self._hello, self._snapshot)
        self._loops: dict[str, StudyLoop] = {}
        self._refused: dict[str, bytes] = {}
        self._over: set[str] = set()
        self._compared: set[str] = set()
        self._unknown: set[str] = set()
        self._told_of_limit = False

    def run(self) -> None:
        """Until ``stop``, or until all studies have ended where that was asked for."""
        try:
            self._connection.run()
            for name, loop in self._loops.items():
                if loop.crashed:
                    raise UnavailableError(
                        f"work on study {name} ended unexpectedly", fix="The log has the traceback; report it"
                    )
        finally:
            for loop in self._loops.values():
                loop.stop()
            deadline = time.monotonic() + STOP_SECONDS
            for loop in self._loops.values():
                loop.join(max(0.0, deadline - time.monotonic()))

    def stop(self) -> None:
        """End ``run`` soon. Safe to call from a signal handler's thread."""
        self._connection.stop()

    def _hello(self, reply: HelloReply) -> None:
        # All of them before any goes on: they spend from one ledger, and one study is enough to show that it
        # is an older copy.
        for snapshot in reply.studies:
            if self._is_heard(snapshot.study):
                self._compare(snapshot)
        for snapshot in reply.studies:
            self._snapshot(snapshot)
        notify("READY=1")

    def _is_heard(self, name: str) -> bool:
        """Whether anything is kept of a study of that name: the coordinator may send any name, and any number
        of them."""
        if name in self._unknown or self._site.studies.versions(name) is not None:
            return True
        try:
            check_name(name, "study")
            if len(self._unknown) == MAX_UNKNOWN_STUDIES:
                raise LimitError(
                    f"the coordinator names more than {MAX_UNKNOWN_STUDIES} studies not known here",
                    why="further ones are ignored until the agent starts again",
                    fix="Ask its operator which studies are this site's",
                )
        except FormatError as error:
            self._site.log.error("study ignored", error=str(error))
            return False
        except LimitError as error:
            if not self._told_of_limit:
                self._site.log.error("study ignored", error=str(error))
                self._told_of_limit = True
            return False
        self._unknown.add(name)
        return True

    def _compare(self, snapshot: StudySnapshot) -> None:
        """Once in a run, for every study that names this site, also one that is over or not known here: a
        folder restored from before a whole study has no trace of it."""
        name = snapshot.study
        if name in self._compared or self._refused.get(name) == snapshot.manifest_digest:
            return
        try:
            with explained_database("compare the ledger with the last commit"):
                check_own_commit(Study(self._site, self._client, name), snapshot.round)
        except RollbackError:
            raise  # the ledger serves all studies
        except (VerificationError, ProtocolError) as error:
            self._refuse(snapshot, error)
        else:
            self._compared.add(name)

    def _snapshot(self, snapshot: StudySnapshot) -> None:
        """Called for one snapshot at a time."""
        if not self._is_heard(snapshot.study):
            return
        self._compare(snapshot)
        try:
            with explained_database("keep the study's state"):
                loop = self._loop(snapshot)
        except RollbackError:
            raise  # the ledger serves all studies
        except (VerificationError, PolicyError, UsageError, ConflictError) as error:
            self._refuse(snapshot, error)
        else:
            if loop is not None:
                loop.offer(snapshot)
        self._metrics.heard(snapshot, admitted=snapshot.study in self._loops)
        self._end_if_finished()

    def _loop(self, snapshot: StudySnapshot) -> StudyLoop | None:
        """The study's loop, admitted and started first if that is needed; None if the study is refused."""
        name, site = snapshot.study, self._site
        known = site.studies.versions(name)
        newest = known.trusts[-1].manifest.version if known else 0
        if self._refused.get(name) == snapshot.manifest_digest:
            return None
        row = site.studies.row(name)
        running = snapshot.state == StudyState.STUDY_STATE_RUNNING
        if newest < snapshot.manifest_version or (row is not None and row.state == REFUSED):
            if not running and newest == 0:
                self._over.add(name)
                return None  # ended before this site ever took part
            admit(site, self._client, name, snapshot.manifest_digest)
            self._refused.pop(name, None)
        if name not in self._loops:
            study = Study(site, self._client, name)
            self._loops[name] = StudyLoop(study, self._end_if_finished)
            self._loops[name].start()
        return self._loops[name]

    def _refuse(self, snapshot: StudySnapshot, error: CipherwardError) -> None:
        name = snapshot.study
        self._site.log.error("study refused", study=name, error=str(error))
        if (loop := self._loops.pop(name, None)) is not None:
            loop.stop()
        with explained_database("record that the study is refused"):
            self._site.studies.set_state(name, REFUSED, str(error))
        self._refused[name] = (
            snapshot.manifest_digest
        )  # not before it is on disk: it is refused again until then

    def _end_if_finished(self) -> None:
        loops = list(self._loops.values())
        if any(loop.crashed for loop in loops):
            self._connection.stop()
        if not self._once_finished:
            return
        if (loops or self._refused or self._over) and all(loop.ended.is_set() for loop in loops):
            self._connection.stop()


def run(
    options: Options, clock: Clock, log: FilteringBoundLogger, metrics: SiteMetrics | None = None
) -> None:
    """``cipherward site run``: returns after SIGTERM, SIGINT, or the end of all studies if that was asked
    for. ``metrics`` observe the lines of ``log``; without them none are served.

    Raises a CipherwardError that says what to do if the site cannot start or must stop.
    """
    # A core file would hold the keys of the round in progress, which are to be nowhere but in memory.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    folder = SiteFolder(options.folder)
    # Before anything is made or started in a folder of something else.
    check_complete(options.folder, Role.SITE)
    # Two agents on one folder would each answer a round and count its privacy.
    lock = FolderLock(options.folder, "a site agent")
    trainer = Trainer(options.trainer_socket or folder.trainer_socket, spawn=options.trainer_socket is None)
    try:
        trainer.start()
        site = open_site(options, trainer, clock, log)
        try:
            tidy(site.folder, site.engine, site.clock)
            with _monitored(options, site, metrics):
                _serve(options, site, metrics)
        finally:
            site.engine.dispose()
    finally:
        notify("STOPPING=1")
        trainer.close()
        lock.release()


@contextmanager
def _monitored(options: Options, site: Site, metrics: SiteMetrics | None) -> Iterator[None]:
    if metrics is None or options.metrics_port is None:
        yield
        return
    health = Health(site, metrics)
    metrics.ask(site, health.is_ready)
    monitoring = Monitoring(options.metrics_port, metrics.registry, health.alive, health.ready)
    site.log.info("monitoring", port=monitoring.port)
    try:
        yield
    finally:
        monitoring.close()
        health.close()


def _serve(options: Options, site: Site, metrics: SiteMetrics | None) -> None:
    register_data_sets(site)
    with open_channel(options.coordinator, site.member.channel_credentials()) as channel:
        agent = Agent(site, CoordinatorClient(channel), once_finished=options.once_finished, metrics=metrics)

        def stop(_number: int, _frame: FrameType | None) -> None:
            site.log.info("stopping")
            # Not in the handler itself: it may have interrupted a holder of the same locks.
            threading.Thread(target=agent.stop, name="stop", daemon=True).start()

        previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            agent.run()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
