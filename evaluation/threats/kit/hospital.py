"""One real site agent in this process, without its loop: keys, policy, ledger, journal and training as shipped, driven
step by step against a coordinator that the row plays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from cipherward.clock import Clock, SystemClock
from cipherward.crypto.labels import Label
from cipherward.crypto.manifest import manifest_digest
from cipherward.crypto.pki.site_keys import load_sealing_key
from cipherward.crypto.records import StudyTrust
from cipherward.crypto.study_file import StudyFile
from cipherward.errors import NotFoundError
from cipherward.evaluation.demo.consortium import COORDINATOR, DemoSite
from cipherward.evaluation.threats.kit.service import Consortium
from cipherward.ids import Role
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.round_pb2 import RoundRecord
from cipherward.site_agent.client.coordinator import CoordinatorClient
from cipherward.site_agent.daemon.logging import make_logger
from cipherward.site_agent.daemon.participation import Participation
from cipherward.site_agent.daemon.quorum.protection import QuorumProtection
from cipherward.site_agent.daemon.site import Site
from cipherward.site_agent.daemon.study import Study
from cipherward.site_agent.ledger.accountant import LocalAccountant
from cipherward.site_agent.ledger.ledger import Ledger
from cipherward.site_agent.offline import patient_key
from cipherward.site_agent.policy import load as load_policy
from cipherward.site_agent.state.folder import SiteFolder
from cipherward.site_agent.state.models import ModelStore
from cipherward.site_agent.state.opening import open_state
from cipherward.site_agent.state.studies import StudyStore
from cipherward.site_agent.tasks.base import Split
from cipherward.site_agent.tasks.registry import find, task_digest
from cipherward.site_agent.training.client import Description, TaskRef, Trainer, TrainOutcome

TASK, STUDY = "heart-disease", "attacked"
NAMES = ("cleveland", "hungary", "switzerland", "va-long-beach")
PARAMETERS = 23
DELTA = 1e-5


class _TrainerHere:
    """The trainer's jobs in this process: what is under attack is the agent, and torch is loaded anyway."""

    def describe(self, task: TaskRef, source: str) -> Description:
        records = find(task.name).load(source, Split.TRAIN)
        return Description(records.patients, len(records.patient_ids), PARAMETERS)

    def train(
        self, task: TaskRef, source: str, constants: Any, weights: NDArray[np.float32], **_: Any
    ) -> TrainOutcome:
        from cipherward.crypto.randomness import KeyStream
        from cipherward.site_agent.training import dpsgd

        found = find(task.name)
        records = found.load(source, Split.TRAIN)
        result = dpsgd.train(found, records, weights, constants, KeyStream())
        return TrainOutcome(result.update, result.metrics, 0.0, result.dropped, records.patients)


@dataclass
class PlayedCoordinator:
    """What the row's coordinator hands out, and what the site sent."""

    manifests: list[Signed] = field(default_factory=list)
    weights: bytes = b""
    records: dict[tuple[int, int], Signed] = field(default_factory=dict)
    joins: list[Signed] = field(default_factory=list)

    def manifest(self, study: str, version: int = 0) -> Signed:
        """The study's only version, or the newest."""
        return self.manifests[version - 1]

    def initial_weights(self, study: str, version: int, size: int) -> bytes:
        """Whatever the row hands out."""
        return self.weights

    def record(self, study: str, number: int, kind: int) -> Signed | None:
        """A record of a round."""
        return self.records.get((number, kind))

    def post_join(self, study: str, record: Signed) -> None:
        """Keeps it."""
        self.joins.append(record)


class Hospitals:
    """A consortium of the four hospitals, and a quorum study that they may take part in."""

    def __init__(self, folder: Path, *, epsilon_ceiling: float = 20.0) -> None:
        self.consortium = Consortium(folder)
        for name in NAMES:
            site = DemoSite(name, f"builtin:{name}", epsilon_ceiling, DELTA)
            self.consortium.add_site(site, TASK, "quorum")
        self.hub = self.consortium.member(Role.COORDINATOR, COORDINATOR)

    def manifest(
        self, weights: NDArray[np.float32], rounds: int = 5, **cohort: Any
    ) -> tuple[Signed, StudyTrust]:
        """A study that begins with these weights, signed by the consortium. ``cohort``: more of that section."""
        signed, manifest = self.consortium.sign(_study_file(rounds, cohort), weights, task_digest(TASK))
        return signed, StudyTrust(manifest, manifest_digest(signed))

    @contextmanager
    def agent(self, name: str, clock: Clock | None = None) -> Iterator[Site]:
        """The hospital's agent, with nothing but its folder."""
        folder = SiteFolder(self.consortium.site_folder(name))
        member = self.consortium.member(Role.SITE, name)
        engine, clock = open_state(folder), clock or SystemClock()
        try:
            yield Site(
                folder=folder,
                member=member,
                sealing_key=load_sealing_key(folder.root, member.credential.sealing_key),
                policy=load_policy(folder.policy),
                ledger=Ledger(engine, patient_key(folder), accountant=LocalAccountant(), clock=clock),
                engine=engine,
                studies=StudyStore(engine),
                models=ModelStore(folder.models),
                trainer=cast(Trainer, _TrainerHere()),
                clock=clock,
                log=make_logger(json_lines=True),
            )
        finally:
            engine.dispose()

    def opening(self, trust: StudyTrust, number: int, model: bytes, transcript: bytes) -> Signed:
        """The coordinator's signed opening of a round."""
        record = RoundRecord(
            manifest_digest=trust.digest,
            round=number,
            model_digest=model,
            previous_transcript=transcript,
            opened_at=1,
        )
        return self.sign(Label.ROUND_RECORD, record)

    def sign(self, label: Label, message: Any) -> Signed:
        """As the coordinator."""
        return self.hub.signing_key.sign(label, message, str(self.hub.identity))


def client_of(played: PlayedCoordinator) -> CoordinatorClient:
    """As the agent's code takes it; a method that is not played raises AttributeError."""
    return cast(CoordinatorClient, played)


def participation(site: Site, played: PlayedCoordinator) -> tuple[Study, Participation]:
    """Steps 1 to 3 of the agent, for the study that it admitted. Raises NotFoundError if it has none."""
    if site.studies.row(STUDY) is None:
        raise NotFoundError(f"the agent has not admitted {STUDY}")
    study = Study(site, client_of(played), STUDY)
    return study, Participation(study, QuorumProtection(study))


def _study_file(rounds: int, cohort: Mapping[str, Any]) -> StudyFile:
    return StudyFile.model_validate(
        {
            "study": {"name": STUDY, "rounds": rounds, "coordinator": COORDINATOR},
            "task": {"name": TASK},
            "training": {"sampling_rate": 0.1, "steps": 5, "learning_rate": 0.5, "batch_divisor": 20.0},
            "metrics": {"loss_bound": 4.0, "scale": 200.0},
            "dp": {
                "clipping_norm": 1.0,
                "noise_multiplier": 4.0,
                "delta": DELTA,
                "metrics": {"noise_multiplier": 20.0},
            },
            "cohort": {"sites": NAMES, **cohort},
        }
    )
