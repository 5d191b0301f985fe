"""A consortium on loopback: real coordinator and real site agents, each a process, with mTLS."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import grpc
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "kit"))

from fault_links import Link

from cipherward.clock import SystemClock
from cipherward.crypto.labels import Label
from cipherward.crypto.manifest_rules import colluders_withstood, least_threshold
from cipherward.crypto.pki.consortium_folder import ConsortiumFolder, create_consortium
from cipherward.crypto.pki.member_files import create_member, install_credential
from cipherward.crypto.pki.site_keys import ensure_sealing_key
from cipherward.crypto.pki.store import load_member
from cipherward.crypto.records import StudyTrust
from cipherward.crypto.signing import record_digest
from cipherward.crypto.strategies import SHARED_NOISE, STRATEGIES
from cipherward.crypto.suites import registry
from cipherward.crypto.transcript import model_digest
from cipherward.database import open_database
from cipherward.ids import Identity, Role
from cipherward.proto.v1 import study_pb2 as sp
from cipherward.proto.v1.coordinator_pb2 import StartStudyMessage, StudyStatusRequest
from cipherward.proto.v1.coordinator_pb2_grpc import CoordinatorStub
from cipherward.site_agent.state.folder import MIGRATIONS
from cipherward.site_agent.status import study_status
from cipherward.site_agent.tasks.registry import task_digest
from cipherward.site_agent.training.client import Trainer

HERE = Path(__file__).parent
PASSPHRASE = "correct horse battery"
PARAMETERS = 23
POLICY = """
minimum_cohort = {cohort}
minimum_threshold = 2
require_dp = true
allowed_suites = ["shared-key", "quorum"]
allowed_strategies = ["fedavg", "fedprox", "fedadam", "fedyogi", "dp-fedsgd"]
[allowed_tasks]
{task} = "installed"
[datasets.heart]
source = "builtin:{source}"
task = "{task}"
epsilon_ceiling = {ceiling}
delta = 1e-5
"""


@pytest.fixture(scope="session")
def made_consortium(tmp_path_factory):
    folder = tmp_path_factory.mktemp("consortium") / "root"
    create_consortium(folder, "heart", PASSPHRASE, time.time())
    return folder, ConsortiumFolder(folder).unlock(PASSPHRASE)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def shared_trainer(tmp_path_factory):
    """One preloaded trainer for all sites: loading torch takes longer than a round."""
    socket_path = tmp_path_factory.mktemp("trainer") / "private" / "socket"
    trainer = Trainer(socket_path, jobs=4)
    trainer.start()
    yield socket_path
    trainer.close()


def _first_set(suite):
    return next(iter(registry.suite(suite).parameter_sets.values()))


class Consortium:
    """Folders, processes, and orders."""

    def __init__(self, folder, consortium, root, trainer_socket, names):
        self.trainer_socket = trainer_socket
        self.links = {}
        self.folder, self.consortium, self.root, self.names = folder, consortium, root, tuple(names)
        self.address = f"127.0.0.1:{free_port()}"
        self.processes = {}
        self.logs = {}
        self._join(Role.COORDINATOR, "hub", hosts=["127.0.0.1"])
        self._join(Role.OPERATOR, "olga")
        for index, name in enumerate(self.names):
            self._join(Role.SITE, name)
            self.policy(name, index)

    def _join(self, role, name, hosts=()):
        folder = self.folder / name
        request = create_member(
            folder,
            Identity.make("heart", role, name),
            self.consortium.anchor,
            now=time.time(),
            hosts=hosts,
            sealing_key=(lambda: ensure_sealing_key(folder)) if role is Role.SITE else bytes,
        )
        _, path = self.consortium.approve(self.root, request, days=100, replace_keys=False, now=time.time())
        install_credential(folder, path.read_bytes(), time.time())

    def member(self, role, name):
        return load_member(self.folder / name, role, time.time())

    def policy(self, name, index=0, cohort=2, ceiling=50.0, task="heart-disease"):
        source = f"cleveland/{index + 1}of{len(self.names)}"
        text = POLICY.format(cohort=cohort, source=source, ceiling=ceiling, task=task)
        (self.folder / name / "policy.toml").write_text(text)

    def manifest(
        self,
        study,
        *,
        suite="shared-key",
        rounds=2,
        minimum=2,
        library=None,
        join_window=60,
        upload=60,
        short=30,
        verify=60,
        task="heart-disease",
        parameters=PARAMETERS,
        steps=5,
        strategy="fedavg",
        sampling_rate=0.2,
        **changes,
    ):
        shared = strategy == SHARED_NOISE
        params = registry.suite(suite).parameter_sets["q16"] if shared else _first_set(suite)
        if suite == "quorum":
            threshold = least_threshold(len(self.names))
            colluders = colluders_withstood(threshold, len(self.names))
            changes = {
                "threshold": threshold,
                "colluders": colluders,
                "collective_verification": True,
                **changes,
            }
            minimum = max(minimum, threshold)
        members = [self.member(Role.SITE, name).credential for name in self.names]
        hub = self.member(Role.COORDINATOR, "hub").credential
        manifest = sp.Manifest(
            consortium="heart",
            study=study,
            version=1,
            first_round=1,
            roster=[
                sp.RosterSite(
                    name=each.identity.name,
                    signing_key=each.signing_key,
                    sealing_key=each.sealing_key,
                    tls_key_digest=each.tls_key_digest,
                    weight=1.0,
                    batch_divisor=10.0,
                )
                for each in members
            ],
            coordinator=sp.CoordinatorEntry(
                name="hub", signing_key=hub.signing_key, tls_key_digest=hub.tls_key_digest
            ),
            task=sp.TaskEntry(name=task, code_digest=task_digest(task)),
            initial_weights_digest=model_digest(np.zeros(parameters, np.float32)),
            parameter_count=parameters,
            rounds=rounds,
            strategy=sp.Strategy(name=strategy, server_learning_rate=1.0, **STRATEGIES[strategy].defaults),
            suite=sp.SuiteEntry(
                name=suite,
                parameters=params.name,
                library=library or params.library,
                bound=1.0 if shared else 64.0,
                key_maker=self.names[0] if suite == "shared-key" else "",
            ),
            dp=sp.DpPolicy(
                clipping_norm=1.0,
                noise_multiplier=2.0,
                sampling_rate=sampling_rate,
                steps=1 if shared else steps,
                learning_rate=0.5,
                delta=1e-5,
                metrics=sp.MetricsPolicy(
                    loss_bound=4.0, noise_multiplier=20.0, scale=1000.0 if shared else 100.0
                ),
            ),
            minimum_cohort=minimum,
            deadlines=sp.Deadlines(
                join_window=join_window, upload=upload, acknowledge=short, unseal=short, verify=verify
            ),
            release_to="sites",
            signed_at=int(time.time()),
        )
        for name, value in changes.items():
            setattr(manifest, name, value)
        return self.root.sign(Label.MANIFEST, manifest)

    def order(self, call):
        olga = self.member(Role.OPERATOR, "olga")
        with grpc.secure_channel(self.address, olga.channel_credentials()) as channel:
            grpc.channel_ready_future(channel).result(timeout=20)
            return call(CoordinatorStub(channel), olga)

    def start_study(self, signed, weights=None):
        digest = record_digest(Label.MANIFEST, signed)
        count = sp.Manifest.FromString(signed.payload).parameter_count
        content = np.zeros(count, "<f4") if weights is None else weights

        def start(stub, olga):
            command = sp.OperatorCommand(
                action=sp.OperatorCommand.ACTION_START, manifest_digest=digest, issued_at=int(time.time())
            )
            order = sp.OperatorOrder(
                command=olga.signing_key.sign(Label.OPERATOR_COMMAND, command, str(olga.identity)),
                credential=olga.credential.signed,
            )
            stub.StartStudy(
                iter([
                    StartStudyMessage(order=order, manifest=signed),
                    *(
                        StartStudyMessage(weights=content[start : start + 2**16].astype("<f4").tobytes())
                        for start in range(0, content.size, 2**16)
                    ),
                ]),
                timeout=30,
            )  # fmt: skip

        self.order(start)
        return StudyTrust(sp.Manifest.FromString(signed.payload), digest)

    def study(self, name):
        return self.order(lambda stub, _: stub.GetStudyStatus(StudyStatusRequest(study=name), timeout=10))

    def _start(self, name, script, *arguments, **environment):
        log = (self.folder / f"{name}.log").open("ab")
        process = subprocess.Popen(
            [sys.executable, str(HERE / script), *arguments],
            stdout=log,
            stderr=log,
            env={**os.environ, "MALLOC_ARENA_MAX": "1", "HURRY": "1", **environment},
        )
        log.close()
        self.processes[name] = process
        return process

    def start_coordinator(self, **environment):
        return self._start("hub", "run_coordinator.py", str(self.folder / "hub"), self.address, **environment)

    def start_site(self, name, *, own_trainer=False, once=True, **environment):
        link = self.links.get(name)
        if link is not None:
            environment["LINK"] = link.orders
        arguments = [str(self.folder / name), self.address if link is None else link.address]
        if not own_trainer:
            arguments.append(str(self.trainer_socket))
        if once:
            environment["ONCE"] = "1"
        return self._start(name, "run_site.py", *arguments, **environment)

    def link(self, name):
        """Have the site reach the coordinator by a link of its own."""
        self.links[name] = Link(self.address)
        return self.links[name]

    def log(self, name):
        return (self.folder / f"{name}.log").read_text()

    def status(self, name, study):
        engine = open_database(f"sqlite:///{self.folder / name}/state.db", MIGRATIONS)
        try:
            return study_status(engine, SystemClock(), study)
        finally:
            engine.dispose()

    def wait_for(self, condition, what, seconds=60):
        deadline = time.monotonic() + seconds
        while not condition():
            logs = "\n".join(self.log(name) for name in self.processes)
            assert time.monotonic() < deadline, f"{what} does not happen:\n{logs}"
            time.sleep(0.05)

    def wait(self, *names, seconds=90):
        deadline = time.monotonic() + seconds
        for name in names:
            try:
                status = self.processes[name].wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise AssertionError(f"{name} does not end:\n{self.log(name)}\n{self.log('hub')}") from None
            assert status == 0, f"{name} ended with {status}:\n{self.log(name)}"

    def kill(self, name):
        self.processes[name].send_signal(signal.SIGKILL)
        self.processes[name].wait()

    def stop(self):
        for link in self.links.values():
            link.close()
        for process in self.processes.values():
            if process.poll() is None:
                process.terminate()
        for process in self.processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def make_consortium(tmp_path, made_consortium, shared_trainer):
    made = []

    def make(*names, folder="."):
        place = tmp_path / folder
        shutil.copytree(made_consortium[0], place / "consortium")
        consortium = ConsortiumFolder(place / "consortium")
        made.append(Consortium(place, consortium, made_consortium[1], shared_trainer, names))
        return made[-1]

    yield make
    for each in made:
        each.stop()
