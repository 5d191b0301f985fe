"""The deep level: the real coordinator (``deep_process``) and real agents (``deep_hospital``), real signatures and
ciphertexts, databases and blobs in memory's file system; one clock, and calls that are lost, repeated or cut."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deep_hospital
import deep_process
import numpy as np
from deep_hospital import Agent, Trainer
from deep_process import Process

from cipherward.clock import ManualClock
from cipherward.coordinator.blobs.writer import SegmentWriter
from cipherward.coordinator.daemon.manifests import read_manifest
from cipherward.crypto.labels import Label
from cipherward.crypto.manifest_rules import least_cohort, least_threshold
from cipherward.crypto.merkle import leaf_hash
from cipherward.crypto.pki import member_files
from cipherward.crypto.pki.issuing import issue_credential, issue_status_list
from cipherward.crypto.pki.peers import Peer
from cipherward.crypto.pki.root_key import RootKey
from cipherward.crypto.pki.site_keys import ensure_sealing_key, load_sealing_key
from cipherward.crypto.pki.store import load_member
from cipherward.crypto.signing import record_digest
from cipherward.crypto.suites.registry import suite
from cipherward.crypto.transcript import model_digest
from cipherward.errors import CipherwardError, UnavailableError
from cipherward.ids import Identity, Role
from cipherward.proto.v1 import study_pb2 as sp
from cipherward.site_agent.state.folder import SiteFolder
from cipherward.site_agent.state.opening import open_state
from cipherward.site_agent.tasks.registry import task_digest

SITES = ("anna", "bert", "cora", "dora")
STUDIES = {"shared": "shared-key", "quorum": "quorum"}
ROUNDS = 2
PARAMETERS = ROUNDS * len(SITES)
NOW = 1_800_000_000.0
POLICY = """
minimum_cohort = 2
minimum_threshold = 2
require_dp = false
allowed_suites = ["shared-key", "quorum"]
[allowed_tasks]
heart-disease = "installed"
[datasets.heart]
source = "builtin:cleveland"
epsilon_ceiling = inf
delta = 1e-4
max_lost_reservations = 1000
"""


class Template:
    """A consortium whose sites have admitted two studies that the coordinator has started: made once, copied for every
    history."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, RootKey.generate()
        self.anchor = self.root.make_anchor("heart", NOW)
        self._status = issue_status_list(self.root, self.anchor, number=1, revoked=[], now=NOW)
        self.hub = self._member(Role.COORDINATOR, "hub")
        self.members = {name: self._member(Role.SITE, name) for name in SITES}
        self.sealing = {
            name: load_sealing_key(folder / name, member.credential.sealing_key)
            for name, member in self.members.items()
        }
        self.peers = {
            name: Peer(
                member.identity,
                member.credential.serial,
                member.credential.tls_key_digest,
                None,  # type: ignore[arg-type]
            )
            for name, member in self.members.items()
        }
        self.manifests = {study: self._manifest(study, name) for study, name in STUDIES.items()}
        for name in SITES:
            (folder / name / "policy.toml").write_text(POLICY)
            open_state(SiteFolder(folder / name)).dispose()
        world = World(self, folder)
        for study in STUDIES:
            world.start_study(study)
        for name in SITES:
            for study in STUDIES:
                world.agents[name].admit(study, record_digest(Label.MANIFEST, self.manifests[study]))
        world.close()

    def _member(self, role: Role, name: str) -> Any:
        folder, options = self.folder / name, {}
        if role is Role.SITE:
            options["sealing_key"] = lambda: ensure_sealing_key(folder)
        else:
            options["hosts"] = ["localhost"]
        identity = Identity.make("heart", role, name)
        request = member_files.create_member(folder, identity, self.anchor, now=NOW, **options)
        credential = issue_credential(self.root, self.anchor, request, days=30, now=NOW)
        bundle = member_files.bundle(self.anchor, credential, self._status)
        member_files.install_credential(folder, bundle, NOW)
        return load_member(folder, role, NOW)

    def _manifest(self, study: str, name: str) -> Any:
        quorum, n = name == "quorum", len(SITES)
        sets = suite(name).parameter_sets
        params = suite(name).parameters("q32" if quorum else next(iter(sets)), 4.0, n)
        t, c = (least_threshold(n), 1) if quorum else (0, 0)
        limits = sp.Deadlines(join_window=60, upload=30, verify=20)
        if quorum:
            limits.acknowledge, limits.unseal = 10, 10
        manifest = sp.Manifest(
            consortium="heart",
            study=study,
            version=1,
            first_round=1,
            roster=[
                sp.RosterSite(
                    name=name,
                    signing_key=member.credential.signing_key,
                    sealing_key=member.credential.sealing_key,
                    tls_key_digest=member.credential.tls_key_digest,
                    weight=1.0,
                    batch_divisor=8.0,
                )
                for name, member in self.members.items()
            ],
            coordinator=sp.CoordinatorEntry(
                name="hub",
                signing_key=self.hub.credential.signing_key,
                tls_key_digest=self.hub.credential.tls_key_digest,
            ),
            task=sp.TaskEntry(name="heart-disease", code_digest=task_digest("heart-disease")),
            initial_weights_digest=model_digest(np.zeros(PARAMETERS, np.float32)),
            parameter_count=PARAMETERS,
            rounds=ROUNDS,
            strategy=sp.Strategy(name="fedavg", server_learning_rate=1.0),
            suite=sp.SuiteEntry(
                name=name,
                parameters=params.name,
                library=params.library,
                bound=4.0,
                key_maker="" if quorum else SITES[0],
            ),
            dp_disabled=True,
            plain=sp.PlainTraining(
                steps=1,
                learning_rate=0.1,
                sampling_rate=0.5,
                metrics=sp.MetricsPolicy(loss_bound=1.0, scale=50.0),
            ),
            minimum_cohort=least_cohort(t, c) if quorum else 3,
            threshold=t,
            colluders=c,
            deadlines=limits,
            release_to="sites",
            signed_at=int(NOW),
        )
        return self.root.sign(Label.MANIFEST, manifest)


class World:
    """One history's."""

    def __init__(self, template: Template, folder: Path) -> None:
        self.template, self.folder = template, folder
        self.clock, self._since = ManualClock(NOW + 60), 0.0
        self.reached: Counter[str] = Counter()
        self.late: list[tuple[str, str, Any]] = []
        self.fault, self.left = "", 0
        self.on_send: Callable[[str, str, Any], None] = lambda _site, _rpc, _request: None
        self.on_reply: Callable[[str, str, Any], None] = lambda _site, _rpc, _request: None
        self.on_restart: Callable[[], None] = lambda: None
        self.process = self._start()
        self.agents = {name: self._agent(name) for name in SITES}

    # Faults

    def arm(self, fault: str, at: int) -> None:
        """The next operation meets that fault with its call, or transaction, number ``at``."""
        self.fault, self.left = fault, at + 1

    def _due(self, *kinds: str) -> str:
        if self.fault not in kinds:
            return ""
        self.left -= 1
        if self.left:
            return ""
        due, self.fault = self.fault, ""
        self.reached[due] += 1
        return due

    def _site_step(self) -> None:
        if self._due("site dies"):
            raise deep_hospital.Killed

    # The coordinator

    def _start(self) -> Process:
        at = lambda: self._due("before", "after")  # noqa: E731
        while True:
            try:
                return Process(self.folder, self.template.hub, self.clock, self._since, at)
            except deep_process.Killed:
                self.reached["killed while it started"] += 1

    def restart(self, *, reboot: bool) -> None:
        """It was killed; on what is on its disk it comes up again."""
        if reboot:
            self._since = self.clock.monotonic()
        self.process.bury()
        self.process = self._start()
        self.reached["coordinator restarted"] += 1
        self.on_restart()

    def _mortal(self, action: Callable[[], Any]) -> Any:
        """Raises UnavailableError if the coordinator died over it."""
        try:
            return action()
        except deep_process.Killed:
            self.process = self._start()
            self.reached["coordinator restarted"] += 1
            self.on_restart()
            raise UnavailableError("the connection broke") from None

    def tick(self, seconds: float) -> None:
        self.clock.advance(seconds)
        try:
            self._mortal(lambda: self.process.run(self.process.studies.tick()))
        except UnavailableError:
            return

    def start_study(self, name: str) -> None:
        """As an operator does."""
        process, template = self.process, self.template
        version = read_manifest(template.manifests[name], template.anchor, template.hub.credential)
        weights = np.zeros(PARAMETERS, "<f4").tobytes()
        writer = SegmentWriter(process.core.blobs, 0)
        writer.add(weights, leaf_hash(weights))
        process.run(process.studies.create(version, f"{name}/weights/0", [writer.flush()]))

    # Sites

    def update(self, site: str, _study: str, number: int) -> np.ndarray:
        made = np.zeros(PARAMETERS, np.float32)
        made[(number - 1) * len(SITES) + SITES.index(site)] = 1.0
        return made

    def _agent(self, name: str) -> Agent:
        trainer = Trainer(lambda study, number: self.update(name, study, number), PARAMETERS)
        return Agent(
            self.folder / name,
            self.template.members[name],
            self.template.sealing[name],
            self.clock,
            trainer,
            lambda rpc, request: self._link(name, rpc, request),
            self._site_step,
        )

    def _link(self, site: str, rpc: str, request: Any) -> Any:
        self._site_step()
        self.on_send(site, rpc, request)
        sent = list(request) if rpc in ("Upload", "PutRelay") else request
        fault = self._due("lost", "reply lost", "twice", "late", "cut")
        if fault == "cut" and rpc == "Upload":
            self._mortal(lambda: self.process.call(rpc, self.template.peers[site], sent[:2]))
        if fault in ("twice", "late"):
            self.late.append((site, rpc, sent))
        if fault in ("lost", "late", "cut"):
            raise UnavailableError("no answer")
        reply = self._mortal(lambda: self.process.call(rpc, self.template.peers[site], sent))
        if fault == "reply lost":
            raise UnavailableError("no answer")
        self._site_step()
        self.on_reply(site, rpc, sent)
        return reply

    def deliver_late(self, index: int, *, again: bool) -> None:
        if self.late:
            site, rpc, sent = (
                self.late[index % len(self.late)] if again else self.late.pop(index % len(self.late))
            )
            self.reached["late arrival"] += 1
            try:
                self._mortal(lambda: self.process.call(rpc, self.template.peers[site], sent))
            except CipherwardError:
                return

    def act(self, site: str, study: str, *, stale: bool = False) -> None:
        try:
            error = self.agents[site].act(study, stale=stale)
        except deep_hospital.Killed:
            self.restart_site(site)
        else:
            if error is not None:
                self.reached[type(error).__name__] += 1

    def restart_site(self, site: str) -> None:
        self.agents[site].bury()
        fault, self.fault = self.fault, ""
        self.agents[site] = self._agent(site)
        self.fault = fault

    def state(self, study: str) -> Any:
        return self.process.studies.require(study).state

    def close(self) -> None:
        for agent in self.agents.values():
            agent.bury()
        self.process.bury()


def copied(template: Template, folder: Path) -> World:
    """A world of its own, as the template's stands."""
    for name in ("coordinator.db", "blobs", *SITES):
        source = template.folder / name
        if source.is_dir():
            shutil.copytree(source, folder / name)
        else:
            shutil.copy(source, folder / name)
    return World(template, folder)
