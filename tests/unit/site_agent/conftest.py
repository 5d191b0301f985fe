"""One real site (alpha) against a coordinator and two peers that the test plays: real keys, real records,
real CKKS. The trainer is played too: what is under test is whom the site believes, and what it says."""

import shutil
import time
from types import SimpleNamespace

import numpy as np
import pytest

from cipherward.clock import SystemClock
from cipherward.crypto import merkle
from cipherward.crypto.labels import Label
from cipherward.crypto.manifest import manifest_digest
from cipherward.crypto.pki.consortium_folder import ConsortiumFolder, create_consortium
from cipherward.crypto.pki.member_files import create_member, install_credential
from cipherward.crypto.pki.site_keys import ensure_sealing_key, load_sealing_key
from cipherward.crypto.pki.store import load_member
from cipherward.crypto.records import StudyTrust
from cipherward.crypto.signing import record_digest
from cipherward.crypto.suites import registry
from cipherward.crypto.suites.payload import Layout, build
from cipherward.crypto.suites.site_side import site_side
from cipherward.crypto.transcript import model_digest
from cipherward.errors import LateError
from cipherward.ids import Identity, Role
from cipherward.proto.v1 import coordinator_pb2 as cp
from cipherward.proto.v1 import round_pb2 as rp
from cipherward.proto.v1 import study_pb2 as sp
from cipherward.site_agent.daemon.admission import admit
from cipherward.site_agent.daemon.logging import make_logger
from cipherward.site_agent.daemon.participation import Participation
from cipherward.site_agent.daemon.release import Release
from cipherward.site_agent.daemon.resync import Resync
from cipherward.site_agent.daemon.shared_key import SharedKeyProtection
from cipherward.site_agent.daemon.site import Site
from cipherward.site_agent.daemon.study import Study
from cipherward.site_agent.daemon.upload import Upload
from cipherward.site_agent.ledger.accountant import LocalAccountant
from cipherward.site_agent.ledger.ledger import Ledger
from cipherward.site_agent.offline import patient_key
from cipherward.site_agent.policy import load as load_policy
from cipherward.site_agent.state.folder import SiteFolder
from cipherward.site_agent.state.models import ModelStore
from cipherward.site_agent.state.opening import open_state
from cipherward.site_agent.state.studies import StudyStore
from cipherward.site_agent.tasks.registry import task_digest
from cipherward.site_agent.training.client import Description, TrainOutcome

NAMES = ("alpha", "beta", "gamma")
PASSPHRASE = "correct horse battery"
STUDY = "heart-1"
PARAMETERS = 23
LENGTH = PARAMETERS + 4
POLICY = """
minimum_cohort = {cohort}
minimum_threshold = 2
require_dp = true
allowed_suites = ["shared-key"]
[allowed_tasks]
heart-disease = "installed"
[datasets.heart]
source = "builtin:cleveland"
epsilon_ceiling = 20.0
delta = 1e-5
"""


class PlayedTrainer:
    """Hands out the update that the test wants."""

    def __init__(self):
        self.update = np.linspace(-1, 1, PARAMETERS, dtype=np.float32)
        self.trained = 0
        self.patients = self.trained_on = tuple(f"patient-{i}" for i in range(200))

    def describe(self, task, source):
        return Description(self.patients, len(self.patients), PARAMETERS)

    def train(self, task, source, constants, weights, *, timeout, cancellation):
        self.trained += 1
        return TrainOutcome(self.update, np.array([0.5, 0.6, 1.0]), 0.1, 0, self.trained_on)


class PlayedCoordinator:
    """Has the client's methods; answers with what the test put there, and keeps what the site sent."""

    def __init__(self):
        self.manifests, self.records, self.reports = [], {}, []
        self.joins, self.commits, self.sent_reports, self.uploads = [], [], [], {}
        self.relayed, self.relay, self.requested = [], [], 0
        self.sum, self.weights = [], np.zeros(PARAMETERS, "<f4").tobytes()
        self.asked_for_sum = 0

    def manifest(self, study, version=0):
        return self.manifests[version - 1]

    def initial_weights(self, study, version, size):
        return self.weights

    def record(self, study, number, kind):
        return self.records.get((number if kind != cp.RECORD_KIND_COMMIT else 0, kind))

    def post_join(self, study, record):
        self.joins.append(record)

    def upload_state(self, header):
        return cp.UploadState(chunks_stored=len(self.uploads.get(header.attempt, [])))

    def upload(self, messages):
        messages = iter(messages)
        chunks = self.uploads.setdefault(next(messages).header.attempt, [])
        for message in messages:
            assert message.index == len(chunks) and merkle.leaf_hash(message.data) == message.leaf_hash
            chunks.append(message.data)
        return cp.UploadState(chunks_stored=len(chunks))

    def post_commit(self, study, record):
        self.commits.append(record)

    def sum_chunks(self, study, number, first):
        self.asked_for_sum += 1
        if not self.sum:
            raise LateError("the sum is gone")
        for index in range(first, len(self.sum)):
            yield cp.DataChunk(index=index, data=self.sum[index])

    def post_model_report(self, study, record):
        self.sent_reports.append(record)

    def model_reports(self, study, number, most):
        return self.reports[:most]

    def put_relay(self, messages):
        self.relayed.append(list(messages))

    def get_relay(self, study, kind, sender=""):
        yield from self.relay

    def request_model(self, study, number):
        self.requested += 1


class World:
    """Everything, and the records of one round as honest parties would make them."""

    def __init__(self, folder, consortium, root, policy_cohort=2):
        self.folder, self.root = folder, root
        self.consortium = consortium
        self.members = {}
        for role, name in [(Role.COORDINATOR, "hub"), *((Role.SITE, name) for name in NAMES)]:
            self._join(role, name)
        self.sealing = {
            name: load_sealing_key(folder / name, self.members[name].credential.sealing_key) for name in NAMES
        }
        self.params = registry.suite("shared-key").parameters(self.parameter_set, 64.0)
        self.coordinator, self.trainer = PlayedCoordinator(), PlayedTrainer()
        (folder / "alpha" / "policy.toml").write_text(POLICY.format(cohort=policy_cohort))
        self.site = self.open_site()
        self.publish(self.manifest())

    @property
    def parameter_set(self):
        return next(iter(registry.suite("shared-key").parameter_sets))

    def _join(self, role, name):
        folder, now = self.folder / name, time.time()
        request = create_member(
            folder,
            Identity.make("heart", role, name),
            self.consortium.anchor,
            now=now,
            hosts=["localhost"] if role is Role.COORDINATOR else [],
            sealing_key=(lambda: ensure_sealing_key(folder)) if role is Role.SITE else bytes,
        )
        _, path = self.consortium.approve(self.root, request, days=100, replace_keys=False, now=now)
        install_credential(folder, path.read_bytes(), now)
        self.members[name] = load_member(folder, role, now)

    def open_site(self):
        folder = SiteFolder(self.folder / "alpha")
        engine = open_state(folder)
        clock = SystemClock()
        return Site(
            folder=folder,
            member=self.members["alpha"],
            sealing_key=self.sealing["alpha"],
            policy=load_policy(folder.policy),
            ledger=Ledger(engine, patient_key(folder), accountant=LocalAccountant(), clock=clock),
            engine=engine,
            studies=StudyStore(engine),
            models=ModelStore(folder.models),
            trainer=self.trainer,
            clock=clock,
            log=make_logger(json_lines=True),
        )

    def manifest(self, **changes):
        hub = self.members["hub"].credential
        manifest = sp.Manifest(
            consortium="heart",
            study=STUDY,
            version=1,
            first_round=1,
            roster=[
                sp.RosterSite(
                    name=name,
                    signing_key=self.members[name].credential.signing_key,
                    sealing_key=self.members[name].credential.sealing_key,
                    tls_key_digest=self.members[name].credential.tls_key_digest,
                    weight=1.0,
                    batch_divisor=20.0,
                )
                for name in NAMES
            ],
            coordinator=sp.CoordinatorEntry(
                name="hub", signing_key=hub.signing_key, tls_key_digest=hub.tls_key_digest
            ),
            task=sp.TaskEntry(name="heart-disease", code_digest=task_digest("heart-disease")),
            initial_weights_digest=model_digest(np.zeros(PARAMETERS, np.float32)),
            parameter_count=PARAMETERS,
            rounds=5,
            strategy=sp.Strategy(name="fedavg", server_learning_rate=1.0),
            suite=sp.SuiteEntry(
                name="shared-key",
                parameters=self.parameter_set,
                library=self.params.library,
                bound=64.0,
                key_maker="alpha",
            ),
            dp=sp.DpPolicy(
                clipping_norm=1.0,
                noise_multiplier=2.0,
                sampling_rate=0.1,
                steps=5,
                learning_rate=0.5,
                delta=1e-5,
                metrics=sp.MetricsPolicy(loss_bound=4.0, noise_multiplier=20.0, scale=200.0),
            ),
            minimum_cohort=2,
            deadlines=sp.Deadlines(join_window=60, upload=60, acknowledge=60, unseal=60, verify=60),
            release_to="sites",
            signed_at=1,
        )
        for name, value in changes.items():
            setattr(manifest, name, value)
        return manifest

    def sign(self, name, label, message):
        member = self.members[name]
        return member.signing_key.sign(label, message, str(member.identity))

    def publish(self, manifest):
        signed = self.root.sign(Label.MANIFEST, manifest)
        self.coordinator.manifests = [signed]
        self.trust = StudyTrust(manifest, manifest_digest(signed))
        return signed

    def admit(self):
        admit(self.site, self.coordinator, STUDY, self.trust.digest)
        return self.attach()

    def attach(self):
        """What a (re)started agent has: nothing but its disk."""
        study = Study(self.site, self.coordinator, STUDY)
        protection = SharedKeyProtection(study)
        return SimpleNamespace(
            study=study,
            keys=protection.keys,
            participation=Participation(study, protection),
            upload=Upload(study, protection),
            release=Release(study, protection),
            resync=Resync(study, self.site.clock),
        )

    # Records of the round, as an honest coordinator and peers make them

    def put(self, number, kind, signed):
        self.coordinator.records[number, kind] = signed
        return signed

    def open_round(self, agent, number, **changes):
        row = agent.study.row()
        record = rp.RoundRecord(
            manifest_digest=self.trust.digest,
            round=number,
            model_digest=row.model_digest,
            previous_transcript=row.transcript,
            opened_at=1,
        )
        for name, value in changes.items():
            setattr(record, name, value)
        return self.put(number, cp.RECORD_KIND_ROUND, self.sign("hub", Label.ROUND_RECORD, record))

    def join_of(self, agent, number, name):
        opening = record_digest(Label.ROUND_RECORD, self.coordinator.records[number, cp.RECORD_KIND_ROUND])
        join = rp.Join(
            manifest_digest=self.trust.digest,
            round_record_digest=opening,
            round=number,
            site=name,
            shared_key_digest=agent.keys.get(self.trust).digest(self.trust.digest),
            library=self.params.library,
        )
        return self.sign(name, Label.JOIN, join)

    def plan(self, agent, number, names=NAMES, own_join=None):
        opening = record_digest(Label.ROUND_RECORD, self.coordinator.records[number, cp.RECORD_KIND_ROUND])
        joins = [
            (own_join or self.coordinator.joins[-1])
            if name == "alpha" and (own_join or self.coordinator.joins)
            else self.join_of(agent, number, name)
            for name in names
        ]
        record = rp.PlanRecord(
            manifest_digest=self.trust.digest, round_record_digest=opening, round=number, joins=joins
        )
        signed = self.put(number, cp.RECORD_KIND_PLAN, self.sign("hub", Label.PLAN_RECORD, record))
        return signed, record_digest(Label.PLAN_RECORD, signed)

    def peer_update(self, agent, number, name, value):
        """Encrypt and commit as the peer would; (chunks, signed commit)."""
        vector = build(
            Layout(PARAMETERS, 3), np.full(PARAMETERS, value, np.float32), [0.5, 0.5, 1.0], self.params.bound
        )
        with site_side("shared-key").cipher(agent.keys.get(self.trust), b"") as cipher:
            chunks = list(cipher.encrypt(vector))
        return chunks, self.commit_of(number, name, chunks)

    def commit_of(self, number, name, chunks, **changes):
        plan = self.coordinator.records[number, cp.RECORD_KIND_PLAN]
        commit = rp.Commit(
            manifest_digest=self.trust.digest,
            plan_digest=record_digest(Label.PLAN_RECORD, plan),
            round=number,
            attempt=1,
            site=name,
            length=LENGTH,
            chunk_count=len(chunks),
            ciphertext_root=merkle.root([merkle.leaf_hash(chunk) for chunk in chunks]),
            ledger_sequence=1,
            ledger_head=bytes(32),
        )
        for field, value in changes.items():
            setattr(commit, field, value)
        return self.sign(name, Label.COMMIT, commit)

    def add(self, uploads):
        with registry.suite("shared-key").chunk_adder(self.params) as adder:
            return [
                adder.add([chunks[index] for chunks in uploads], index, LENGTH)
                for index in range(len(uploads[0]))
            ]

    def close(self, agent, number, updates, *, summed=None):
        """``updates``: name -> (chunks, signed commit). Publishes the close record and the sum."""
        summed = summed if summed is not None else self.add([chunks for chunks, _ in updates.values()])
        plan = self.coordinator.records[number, cp.RECORD_KIND_PLAN]
        contributions = []
        for name, (_, signed) in updates.items():
            commit = rp.Commit.FromString(signed.payload)
            contributions.append(
                rp.Contribution(
                    site=name,
                    attempt=commit.attempt,
                    ciphertext_root=commit.ciphertext_root,
                    commit=signed,
                )
            )
        record = rp.CloseRecord(
            manifest_digest=self.trust.digest,
            plan_digest=record_digest(Label.PLAN_RECORD, plan),
            round=number,
            contributions=contributions,
            sum_root=merkle.root([merkle.leaf_hash(chunk) for chunk in summed]),
            sum_chunk_count=len(summed),
            previous_transcript=agent.study.row().transcript,
            closed_at=1,
        )
        self.coordinator.sum = summed
        signed = self.sign("hub", Label.CLOSE_RECORD, record)
        return self.put(number, cp.RECORD_KIND_CLOSE, signed)

    def abort(self, agent, number):
        record = rp.AbortRecord(
            manifest_digest=self.trust.digest,
            round=number,
            reason="too few",
            previous_transcript=agent.study.row().transcript,
            aborted_at=1,
        )
        return self.put(number, cp.RECORD_KIND_CLOSE, self.sign("hub", Label.ABORT_RECORD, record))

    def report_of(self, number, name, digest):
        close = self.coordinator.records[number, cp.RECORD_KIND_CLOSE]
        report = rp.ModelReport(
            manifest_digest=self.trust.digest,
            close_digest=record_digest(Label.CLOSE_RECORD, close),
            round=number,
            site=name,
            model_digest=digest,
        )
        return self.sign(name, Label.MODEL_REPORT, report)

    def to_commit(self, agent, number):
        """alpha up to its commit; returns its (chunks, signed commit)."""
        self.open_round(agent, number)
        agent.participation.train_and_join(number)
        _, digest = self.plan(agent, number)
        agent.upload.upload_and_commit(number, digest)
        commit = self.coordinator.commits[-1]
        attempt = rp.Commit.FromString(commit.payload).attempt
        return self.coordinator.uploads[attempt], commit

    def to_close(self, agent, number):
        """An honest round up to the close record."""
        own = self.to_commit(agent, number)
        updates = {"alpha": own}
        for name, value in (("beta", 0.25), ("gamma", -0.5)):
            updates[name] = self.peer_update(agent, number, name, value)
        self.close(agent, number, updates)
        return updates


@pytest.fixture(scope="session")
def root_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "consortium"
    create_consortium(folder, "heart", PASSPHRASE, time.time())
    return folder, ConsortiumFolder(folder).unlock(PASSPHRASE)


@pytest.fixture
def make_world(tmp_path, root_folder):
    made = []

    def make(**options):
        shutil.copytree(root_folder[0], tmp_path / "consortium")
        made.append(World(tmp_path, ConsortiumFolder(tmp_path / "consortium"), root_folder[1], **options))
        return made[-1]

    yield make
    for world in made:
        world.site.engine.dispose()


@pytest.fixture
def world(make_world):
    return make_world()
