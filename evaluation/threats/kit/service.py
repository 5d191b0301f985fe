"""A real coordinator process under attack, and everybody's real keys and certificates."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cipherward.cli.operator_client import dial
from cipherward.crypto.manifest import manifest_digest
from cipherward.crypto.pki.member_files import install_credential, write_status
from cipherward.crypto.pki.store import Member, load_member
from cipherward.crypto.records import StudyTrust
from cipherward.crypto.study_file import StudyFile
from cipherward.crypto.suites.base import KeyLifetime
from cipherward.crypto.suites.registry import suite
from cipherward.durable import read_file
from cipherward.evaluation.demo.consortium import COORDINATOR, NAME, DemoConsortium
from cipherward.evaluation.demo.processes import Processes
from cipherward.ids import Identity, Role
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.coordinator_pb2 import StudyStatus

CHANGED = "cipherward.evaluation.threats.kit.changed"
STUDY = "attacked"
PARAMETERS = 23
START_SECONDS = 60.0


class Consortium(DemoConsortium):
    """As the demo makes it, and an admin who revokes and issues short-lived certificates."""

    def revoke(self, name: str) -> None:
        """Revoke a site; the coordinator's folder gets the new list, as its operator installs it."""
        who = Identity.make(NAME, Role.SITE, name)
        status = self._admin.revoke(self._root, who, "stolen", time.time())
        write_status(self.coordinator, status.signed)

    def expiring(self, name: str, seconds: float) -> None:
        """Renew a site's certificate so that it ends in so many seconds."""
        folder = self.site_folder(name)
        self.enrol(name)
        from cipherward.crypto.pki.member_files import read_request

        then = time.time() - 86_400 + seconds
        _, path = self._admin.approve(self._root, read_request(folder), days=1, replace_keys=False, now=then)
        install_credential(folder, read_file(path), time.time())

    def member(self, role: Role, name: str) -> Member:
        """Keys and certificates of a site, the coordinator or the operator."""
        folder = {
            Role.SITE: self.site_folder(name),
            Role.COORDINATOR: self.coordinator,
            Role.OPERATOR: self.operator,
        }
        return load_member(folder[role], role, time.time())

    def sign_manifest(self, study: StudyFile, weights: NDArray[np.float32]) -> tuple[Signed, StudyTrust]:
        """A signed manifest over all approved sites."""
        signed, manifest = self.sign(study, weights, bytes(32))
        return signed, StudyTrust(manifest, manifest_digest(signed))


def study_file(
    suite_name: str,
    key_maker: str,
    *,
    name: str = STUDY,
    rounds: int = 2,
    minimum: int = 0,
    deadline: int = 600,
    upload: int = 0,
    **cohort: Any,
) -> StudyFile:
    """A study without differential privacy, for made-up updates."""
    params = next(iter(suite(suite_name).parameter_sets.values()))
    shared = suite(suite_name).key_lifetime is KeyLifetime.STUDY
    return StudyFile.model_validate(
        {
            "study": {"name": name, "rounds": rounds, "coordinator": COORDINATOR},
            "task": {"name": "made-up"},
            "training": {
                "sampling_rate": 1.0, "steps": 1, "learning_rate": 0.1, "batch_divisor": 8.0,
                "dp_disabled": True,
            },
            "metrics": {"loss_bound": 2.0, "scale": 8.0},
            "suite": {
                "name": suite_name, "parameters": params.name, "bound": params.bound,
                "key_maker": key_maker if shared else "",
            },
            "cohort": {"minimum": minimum or (2 if shared else 0), **cohort},
            "deadlines": {
                "join_window": deadline, "upload": upload or deadline, "acknowledge": deadline, "unseal": deadline,
                "verify": deadline,
            },
        }
    )  # fmt: skip


class Service:
    """A consortium of made-up sites, and its coordinator as a process. ``changes``: what is taken out of it, or what
    it does wrongly, by the names in ``kit.changed``; none: as shipped."""

    def __init__(self, folder: Path, sites: Sequence[str], changes: Sequence[str] = ()) -> None:
        folder.mkdir(mode=0o700, parents=True)
        self.folder, self.names, self.changes = folder, tuple(sites), tuple(changes)
        self.consortium = Consortium(folder)
        for name in sites:
            self.consortium.enrol(name)
        self.processes = Processes(folder / "logs", CHANGED)
        self._stack = ExitStack()
        self.address, self.pid = "", 0
        self._signed: dict[str, Signed] = {}

    def __enter__(self) -> Self:
        self._stack.enter_context(self.processes)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def start(self) -> None:
        """Start the coordinator and wait until it serves."""
        (self.consortium.coordinator / "address").unlink(missing_ok=True)
        folder = str(self.consortium.coordinator)
        process = self.processes.start(
            "coordinator", ",".join(self.changes), "coordinator", "run", "--dir", folder, "--listen",
            self.address or "127.0.0.1:0",
        )  # fmt: skip
        self.pid = process.pid
        self.address = self.processes.address_of(self.consortium.coordinator, START_SECONDS)

    def restart(self, *changes: str) -> None:
        """The same folder and address, with other changes."""
        self.processes.kill("coordinator")
        self.changes = changes
        self.start()

    def alive(self) -> bool:
        """Whether the coordinator's process runs and answers its operator."""
        self.processes.check()
        return bool(self.status().study)

    def study(self, file: StudyFile, weights: NDArray[np.float32] | None = None) -> StudyTrust:
        """Sign and start a study."""
        found = np.zeros(PARAMETERS, dtype="<f4") if weights is None else weights
        signed, trust = self.consortium.sign_manifest(file, found)
        path = self.folder / "weights.f32"
        path.write_bytes(found.astype("<f4").tobytes())
        with dial(self.consortium.operator, self.address) as client:
            client.start(signed, path)
        return trust

    def status(self) -> StudyStatus:
        """As its operator sees it."""
        with dial(self.consortium.operator, self.address) as client:
            return client.status("")

    def member(self, name: str) -> Member:
        """A site's keys."""
        return self.consortium.member(Role.SITE, name)

    def log(self) -> str:
        """What the coordinator logged."""
        return (self.folder / "logs" / "coordinator.log").read_text()
