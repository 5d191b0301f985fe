"""A consortium on one machine: root, coordinator, operator and sites, each with a folder and keys of its own.

Uses the functions behind ``consortium init``, ``site init``, ``approve`` and ``sign-study``; only that the
files need not be carried between machines, and that the root's passphrase is random and forgotten.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cipherward.crypto.labels import Label
from cipherward.crypto.manifest import build_manifest
from cipherward.crypto.pki.armour import Kind, armour_signed
from cipherward.crypto.pki.consortium_folder import ConsortiumFolder, create_consortium
from cipherward.crypto.pki.member_files import ANCHOR, create_member, install_credential
from cipherward.crypto.pki.root_key import RootKey
from cipherward.crypto.pki.site_keys import ensure_sealing_key
from cipherward.crypto.study_file import StudyFile
from cipherward.crypto.transcript import model_digest
from cipherward.durable import read_file, write_file
from cipherward.ids import Identity, Role
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.study_pb2 import Manifest
from cipherward.site_agent.tasks.registry import task_digest
from cipherward.site_agent.training.client import TaskRef, Trainer

NAME, COORDINATOR, OPERATOR = "demo", "hub", "operator"


@dataclass(frozen=True, slots=True)
class DemoSite:
    """A site's name, and what its policy allows: one data set with a ceiling on its privacy loss."""

    name: str
    source: str
    epsilon_ceiling: float
    delta: float


class DemoConsortium:
    """Makes everything below ``folder``; an unprivileged user's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.coordinator = folder / "coordinator"
        self.operator = folder / "operator"
        self.manifest = folder / "manifest.pem"
        self.weights = folder / "initial-weights.f32"
        self.anchor = folder / "consortium" / ANCHOR
        passphrase = secrets.token_urlsafe(24)
        self._anchor = create_consortium(folder / "consortium", NAME, passphrase, time.time())
        self._admin = ConsortiumFolder(folder / "consortium")
        self._root: RootKey = self._admin.unlock(passphrase)
        self._member(self.coordinator, Role.COORDINATOR, COORDINATOR, ("localhost", "127.0.0.1"))
        self._member(self.operator, Role.OPERATOR, OPERATOR)

    def site_folder(self, name: str) -> Path:
        """Where a site's keys, policy and state are."""
        return self.folder / "sites" / name

    def add_site(
        self, site: DemoSite, task: str, suite: str, *, dp: bool = True, strategy: str = "fedavg"
    ) -> None:
        """Keys, credential and policy of one hospital."""
        folder = self.site_folder(site.name)
        self.enrol(site.name)
        ceiling = f"{site.epsilon_ceiling}" if dp else "inf"
        write_file(
            folder / "policy.toml",
            f"""\
minimum_cohort = 2
minimum_threshold = 2
require_dp = {str(dp).lower()}
allowed_suites = ["{suite}"]
allowed_strategies = ["{strategy}"]

[allowed_tasks]
{task} = "installed"

[datasets.patients]
source = "{site.source}"
task = "{task}"
epsilon_ceiling = {ceiling}
delta = {site.delta}
max_lost_reservations = 5
""".encode(),
            mode=0o600,
        )

    def enrol(self, name: str) -> None:
        """Keys and credential of one hospital."""
        self._member(self.site_folder(name), Role.SITE, name)

    def _member(self, folder: Path, role: Role, name: str, hosts: Sequence[str] = ()) -> None:
        now = time.time()
        request = create_member(
            folder,
            Identity.make(NAME, role, name),
            self._anchor,
            now=now,
            hosts=hosts,
            sealing_key=(lambda: ensure_sealing_key(folder)) if role is Role.SITE else bytes,
        )
        _, path = self._admin.approve(self._root, request, days=365, replace_keys=False, now=now)
        install_credential(folder, read_file(path), now)

    def sign_study(self, study: StudyFile, seed: int, trainer: Trainer) -> Manifest:
        """Make the initial weights and the signed manifest; gives the manifest."""
        digest = task_digest(study.task.name)
        weights = trainer.initial_weights(TaskRef(study.task.name, digest), seed)
        write_file(self.weights, np.ascontiguousarray(weights, dtype="<f4").tobytes())
        signed, manifest = self.sign(study, weights, digest)
        write_file(self.manifest, armour_signed(Kind.MANIFEST, signed))
        return manifest

    def sign(
        self, study: StudyFile, weights: NDArray[np.floating[Any]], code_digest: bytes
    ) -> tuple[Signed, Manifest]:
        """A manifest over all approved sites, for a model that begins with ``weights``."""
        now = time.time()
        manifest = build_manifest(
            study,
            anchor=self._anchor,
            sites=[self._admin.credential(who, now) for who in self._admin.members(Role.SITE, now)],
            coordinator=self._admin.credential(Identity.make(NAME, Role.COORDINATOR, COORDINATOR), now),
            revocations=self._admin.status(),
            task_code_digest=code_digest,
            initial_weights_digest=model_digest(weights),
            parameter_count=weights.size,
            previous=None,
            now=now,
        )
        return self._root.sign(Label.MANIFEST, manifest), manifest
