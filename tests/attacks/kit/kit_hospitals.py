"""Hospitals with real site agents (keys, journal on disk, records, ciphertexts) against a coordinator that the test
plays. The coordinator is honest until a test changes what it shows; the trainers hand out what a test wants.

Built on the world of the site agent's own tests, which has one agent and the shared-key suite.
"""

import importlib.util
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from cipherward.clock import SystemClock
from cipherward.crypto.labels import Label
from cipherward.crypto.manifest_rules import colluders_withstood, least_threshold
from cipherward.crypto.pki.site_keys import load_sealing_key
from cipherward.crypto.signing import record_digest
from cipherward.crypto.suites.payload import Layout, build
from cipherward.evaluation.threats.kit.parties import SUITE, contribution, prove, tree
from cipherward.ids import Role
from cipherward.proto.v1 import coordinator_pb2 as cp
from cipherward.proto.v1 import round_pb2 as rp
from cipherward.proto.v1 import study_pb2 as sp
from cipherward.site_agent.daemon.admission import admit
from cipherward.site_agent.daemon.logging import make_logger
from cipherward.site_agent.daemon.participation import Participation
from cipherward.site_agent.daemon.quorum.protection import QuorumProtection
from cipherward.site_agent.daemon.release import Release
from cipherward.site_agent.daemon.site import Site
from cipherward.site_agent.daemon.study import Study
from cipherward.site_agent.daemon.upload import Upload
from cipherward.site_agent.ledger.ledger import Ledger
from cipherward.site_agent.offline import patient_key
from cipherward.site_agent.policy import load as load_policy
from cipherward.site_agent.state.folder import SiteFolder
from cipherward.site_agent.state.models import ModelStore
from cipherward.site_agent.state.opening import open_state
from cipherward.site_agent.state.studies import StudyStore


def _site_tests():
    """The conftest of the site agent's tests, as a module of its own."""
    path = Path(__file__).parents[2] / "unit" / "site_agent" / "conftest.py"
    spec = importlib.util.spec_from_file_location("kit_site_world", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


base = _site_tests()
PASSPHRASE, STUDY, PARAMETERS, LENGTH = base.PASSPHRASE, base.STUDY, base.PARAMETERS, base.LENGTH
NAMES = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta")
base.NAMES = NAMES  # of this copy of the module: the site agent's tests have three
METRICS = np.array([0.5, 0.6, 1.0])


class Accountant:
    """Privacy accounting has tests of its own, and takes a second each time."""

    def epsilon(self, events, delta):
        return 0.1

    def rounds_left(self, spent, per_round, ceiling, delta):
        return 1000


class Link(base.PlayedCoordinator):
    """The coordinator as one site sees it."""

    def __init__(self, hub, name):
        super().__init__()
        self.hub, self.name = hub, name
        self.manifests, self.records = hub.manifests, hub.records
        self._stored = {}  # by round: chunks and sealed shares, each by attempt

    def _show(self, kind, messages):
        shown = (self.hub.show(kind, self.name, message) for message in messages)
        return [message for message in shown if message is not None]

    def record(self, study, number, kind):
        found = super().record(study, number, kind)
        what = "close" if kind == cp.RECORD_KIND_CLOSE else "record"
        return None if found is None else self.hub.show(what, self.name, found)

    def _of(self, number):
        chunks, sealed = self._stored.setdefault(number, ({}, {}))
        self.uploads = chunks  # where the base class looks
        return chunks, sealed

    def upload_state(self, header):
        chunks, sealed = self._of(header.round)
        return cp.UploadState(
            chunks_stored=len(chunks.get(header.attempt, [])),
            shares_stored=len(sealed.get(header.attempt, [])),
        )

    def upload(self, messages):
        header, *messages = messages
        _, sealed = self._of(header.header.round)
        super().upload([header, *(message for message in messages if not message.HasField("share"))])
        stored = sealed.setdefault(header.header.attempt, [])
        stored += [message.share.sealed for message in messages if message.HasField("share")]
        return self.upload_state(header.header)

    def committed(self, number):
        """(signed commit, chunks, sealed shares) of this site in the round, or None."""
        for signed in self.commits:
            commit = rp.Commit.FromString(signed.payload)
            if commit.round == number:
                chunks, sealed = self._stored[number]
                return signed, chunks[commit.attempt], sealed[commit.attempt]
        return None

    def shares(self, study, number, most):
        place, found = self.hub.members.index(self.name), []
        for dealer in self.hub.members:
            if (item := self.hub.links[dealer].committed(number)) is not None:
                signed, _, sealed = item
                found.append(
                    cp.ShareMessage(
                        sealed=sealed[place], index=place, inclusion=prove(sealed, place), commit=signed
                    )
                )
        return self._show("share", found)[:most]

    def post_acknowledgement(self, study, record):
        self.hub.acknowledgements[self.name] = rp.Acknowledgement.FromString(record.payload)

    def post_answer(self, request):
        self.hub.answers.setdefault(self.name, []).append(request)

    def answers(self, study, number, most):
        place, found = self.hub.members.index(self.name), []
        for posted in self.hub.answers.values():
            keys = list(posted[-1].sealed_keys)
            found.append(
                cp.AnswerMessage(
                    record=posted[-1].record, sealed_key=keys[place], inclusion=prove(keys, place)
                )
            )
        return self._show("answer", found)[:most]

    def update_chunks(self, study, number, indices, *, without_own):
        for index in indices:
            for name in self.hub.cohort:
                if without_own and name == self.name:
                    continue
                _, chunks, _ = self.hub.links[name].committed(number)
                yield cp.DataChunk(index=index, data=chunks[index], inclusion=prove(chunks, index), site=name)

    def post_sum_check(self, study, record):
        self.hub.checks[self.name] = record

    def sum_checks(self, study, number, most):
        return self._show("check", self.hub.checks.values())[:most]


class Hub:
    """What the coordinator has. ``show(kind, receiver, message)`` is what it hands out of it: the message itself,
    another one, or None for nothing. Kinds: record, close, share, answer, check."""

    def __init__(self):
        self.manifests, self.records, self.links = [], {}, {}
        self.show = lambda kind, receiver, message: message
        self.begin(())

    def begin(self, members):
        """A plan was made: nothing of it has been posted."""
        self.members, self.cohort = tuple(members), ()
        self.acknowledgements, self.answers, self.checks = {}, {}, {}


class Enrolled(base.World):
    """Credentials and keys of the coordinator and all hospitals, in folders to copy."""

    def __init__(self, folder, consortium, root):
        self.folder, self.consortium, self.root, self.members = folder, consortium, root, {}
        for role, name in [(Role.COORDINATOR, "hub"), *((Role.SITE, name) for name in NAMES)]:
            self._join(role, name)


class Hospitals(base.World):
    """The first ``count`` hospitals in a quorum study, each with an agent that has admitted it."""

    def __init__(self, enrolled, folder, count, **manifest):
        self.folder, self.root, self.members = folder, enrolled.root, enrolled.members
        self.names = NAMES[:count]
        self.params = SUITE.parameters(self.parameter_set, 64.0, count)
        self.coordinator = self.hub = Hub()
        self.trainers = {name: base.PlayedTrainer() for name in self.names}
        self._engines = []
        self.publish(self.manifest(**manifest))
        self.agents = {}
        for name in self.names:
            shutil.copytree(enrolled.folder / name, folder / name)
            text = base.POLICY.format(cohort=2).replace("shared-key", "quorum")
            (folder / name / "policy.toml").write_text(text)
            self.hub.links[name] = Link(self.hub, name)
            site = self._site(name)
            admit(site, self.hub.links[name], STUDY, self.trust.digest)
            self.agents[name] = self._agent(name, site)

    @property
    def parameter_set(self):
        return "q32"

    def publish(self, manifest):
        self.hub.manifests[:] = [self.root.sign(Label.MANIFEST, manifest)]
        return super().publish(manifest)

    def manifest(self, **changes):
        count = len(self.names)
        made = super().manifest()
        del made.roster[count:]
        made.suite.CopyFrom(
            sp.SuiteEntry(
                name="quorum", parameters=self.parameter_set, library=self.params.library, bound=64.0
            )
        )
        made.threshold = changes.pop("threshold", least_threshold(count))
        made.colluders = changes.pop("colluders", max(0, colluders_withstood(made.threshold, count)))
        made.minimum_cohort = max(made.threshold, made.colluders + 2)
        made.collective_verification = True
        for name, value in changes.items():
            setattr(made, name, value)
        return made

    def _site(self, name):
        folder = SiteFolder(self.folder / name)
        engine = open_state(folder)
        self._engines.append(engine)
        clock = SystemClock()
        return Site(
            folder=folder,
            member=self.members[name],
            sealing_key=load_sealing_key(folder.root, self.members[name].credential.sealing_key),
            policy=load_policy(folder.policy),
            ledger=Ledger(engine, patient_key(folder), accountant=Accountant(), clock=clock),
            engine=engine,
            studies=StudyStore(engine),
            models=ModelStore(folder.models),
            trainer=self.trainers[name],
            clock=clock,
            log=make_logger(json_lines=True),
        )

    def _agent(self, name, site):
        study = Study(site, self.hub.links[name], STUDY)
        protection = QuorumProtection(study)
        return SimpleNamespace(
            name=name,
            site=site,
            study=study,
            protection=protection,
            participation=Participation(study, protection),
            upload=Upload(study, protection),
            release=Release(study, protection),
            link=self.hub.links[name],
        )

    def restart(self, name):
        """The agent again, with nothing but its disk."""
        self.agents[name].site.engine.dispose()
        self.agents[name].protection.forget(10**6)
        self.agents[name] = self._agent(name, self._site(name))
        return self.agents[name]

    def close_all(self):
        for agent in self.agents.values():
            agent.protection.forget(10**6)
        for engine in self._engines:
            engine.dispose()

    def each(self, names=None):
        return [self.agents[name] for name in (self.names if names is None else names)]

    # A round, step by step, as an honest coordinator leads it

    def vector(self, update):
        """What is encrypted of an update."""
        return build(Layout(PARAMETERS, len(METRICS)), update, METRICS, 64.0)

    def to_plan(self, number, updates):
        """Rounds begin: everybody in ``updates`` trains that update and joins. Returns the plan's digest."""
        self.open_round(next(iter(self.agents.values())), number)
        for name, update in updates.items():
            agent = self.agents[name]
            self.trainers[name].update = update
            agent.participation.train_and_join(number)
        joins = [self.hub.links[name].joins[-1] for name in self.names if name in updates]
        record = rp.PlanRecord(
            manifest_digest=self.trust.digest,
            round_record_digest=self.digest_of(number, cp.RECORD_KIND_ROUND, Label.ROUND_RECORD),
            round=number,
            joins=joins,
        )
        self.hub.begin([name for name in self.names if name in updates])
        signed = self.put(number, cp.RECORD_KIND_PLAN, self.sign("hub", Label.PLAN_RECORD, record))
        return record_digest(Label.PLAN_RECORD, signed)

    def digest_of(self, number, kind, label):
        return record_digest(label, self.hub.records[number, kind])

    def to_commit(self, number, updates):
        plan = self.to_plan(number, updates)
        for agent in self.each(updates):
            agent.upload.upload_and_commit(number, plan)

    def to_acknowledge(self, number, updates):
        self.to_commit(number, updates)
        for agent in self.each(updates):
            agent.protection.acknowledge(number)

    def total(self, number, who):
        uploads = [self.hub.links[name].committed(number)[1] for name in who]
        with SUITE.chunk_adder(self.params) as adder:
            return [
                adder.add(column, index, LENGTH) for index, column in enumerate(zip(*uploads, strict=True))
            ]

    def close_record(self, number, who, summed=None, transcript=None):
        """The signed close record over ``who``; nothing is published."""
        summed = self.total(number, who) if summed is None else summed
        record = rp.CloseRecord(
            manifest_digest=self.trust.digest,
            plan_digest=self.digest_of(number, cp.RECORD_KIND_PLAN, Label.PLAN_RECORD),
            round=number,
            contributions=[contribution(self.hub.links[name].committed(number)[0]) for name in who],
            sum_root=tree(summed),
            sum_chunk_count=len(summed),
            previous_transcript=transcript or self.agents[who[0]].study.row().transcript,
        )
        return self.sign("hub", Label.CLOSE_RECORD, record)

    def close(self, number, who, summed=None):
        """Publish the close record over ``who`` and its sum."""
        summed = self.total(number, who) if summed is None else summed
        self.hub.cohort = tuple(who)
        for link in self.hub.links.values():
            link.sum = summed
        return self.put(number, cp.RECORD_KIND_CLOSE, self.close_record(number, who, summed))

    def to_answers(self, number, updates):
        """All of a calm round up to the answers of all; its close record."""
        self.to_acknowledge(number, updates)
        closed = self.close(number, list(updates))
        for agent in self.each(updates):
            agent.protection.unseal(number)
        return closed

    def release(self, number, names=None):
        for agent in self.each(names):
            agent.release.catch_up(number, number)

    def model(self, name):
        site, row = self.agents[name].site, self.agents[name].study.row()
        return site.models.get(row.model_digest)

    def incidents(self, name):
        return [incident.message for incident in self.agents[name].site.studies.incidents()]


def updates(names, seed):
    """An update for each, float32 of shape (PARAMETERS,)."""
    rng = np.random.default_rng(seed)
    return {name: rng.uniform(-1, 1, PARAMETERS).astype(np.float32) for name in names}
