"""A whole study in real processes: coordinator, four hospitals' agents with the heart data, operator."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cipherward.crypto.manifest import manifest_digest
from cipherward.crypto.pki.armour import Kind, unarmour_signed
from cipherward.crypto.records import StudyTrust
from cipherward.durable import read_file
from cipherward.evaluation.demo.consortium import DemoSite
from cipherward.evaluation.demo.processes import Processes
from cipherward.evaluation.demo.run import hospital_parts
from cipherward.evaluation.demo.studies import TASK, demo_study, study_file
from cipherward.evaluation.demo.study import RunningStudy
from cipherward.evaluation.threats.kit.service import CHANGED, Consortium
from cipherward.proto.v1.study_pb2 import Manifest
from cipherward.site_agent.training.client import Trainer

EPSILON, SEED = 3.0, 0
SIGMA = 4.0
"""The noise multiplier: less than epsilon allows for a round or a few."""


class _Processes(Processes):
    """Each with the changes that are its own."""

    def __init__(self, logs: Path, coordinator: Sequence[str], sites: Sequence[str]) -> None:
        super().__init__(logs, CHANGED)
        self._coordinator, self._sites = ",".join(coordinator), ",".join(sites)

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """See the base class."""
        return super().start(name, self._coordinator if name == "coordinator" else self._sites, *arguments)


@dataclass(frozen=True)
class Ended:
    """What a study left behind: every folder as its process wrote it."""

    consortium: Consortium
    trust: StudyTrust
    names: tuple[str, ...]
    logs: Path


def run_study(
    folder: Path,
    suite: str,
    *,
    rounds: int = 1,
    coordinator: Sequence[str] = (),
    sites: Sequence[str] = (),
) -> Ended:
    """Run it to its end; ``coordinator`` and ``sites``: changes (``kit.changes``) to these processes.

    Raises UnavailableError if it does not end well.
    """
    folder.mkdir(mode=0o700, parents=True)
    sources = hospital_parts(4)
    plan = demo_study("fedavg", rounds, EPSILON)
    consortium = Consortium(folder)
    for name, source in sources.items():
        consortium.add_site(DemoSite(name, source, EPSILON, plan.training.delta), TASK, suite)
    trainer = Trainer(folder / "trainer" / "socket", log=folder / "trainer.log")
    with _Processes(folder / "logs", coordinator, sites) as processes:
        try:
            trainer.start()
            consortium.sign_study(study_file(plan, suite, sources, SIGMA), SEED, trainer)
            study = RunningStudy(consortium, processes, list(sources), "cipherward.cli.app")
            study.start(folder / "trainer" / "socket")
            study.watch(lambda _: None, seconds=300)
            study.wait_for_sites(120)
        finally:
            trainer.close()
    signed = unarmour_signed(Kind.MANIFEST, read_file(consortium.manifest))
    trust = StudyTrust(Manifest.FromString(signed.payload), manifest_digest(signed))
    return Ended(consortium, trust, tuple(sources), folder / "logs")
