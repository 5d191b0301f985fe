"""Whether this site takes part in a study: the consortium's root signed it, it names this site's own keys
and the suite's exact library, the hospital's policy allows it, and the code and initial weights are the
ones it names."""

from __future__ import annotations

import numpy as np

from cipherward.crypto.manifest import require_member, verify_manifest, verify_successor
from cipherward.crypto.records import StudyTrust
from cipherward.crypto.transcript import model_digest
from cipherward.errors import VerificationError
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.site_agent.client.coordinator import CoordinatorClient
from cipherward.site_agent.daemon.hospital import admit_by_policy
from cipherward.site_agent.daemon.revocation import require_coordinator_in_force
from cipherward.site_agent.daemon.site import Site
from cipherward.site_agent.tasks.registry import check_digest

MAX_VERSIONS = 1000


def admit(site: Site, client: CoordinatorClient, study: str, announced: bytes) -> None:
    """Admit the newest manifest of ``study``, whose digest the coordinator announced, and persist it.

    Raises VerificationError, IdentityError, PolicyError, UsageError or ConflictError with the reason, which
    is recorded: the study is then refused. Raises UnavailableError where only a later try can tell.
    """
    accepted = _versions(site, client, study)
    trust, _ = accepted[-1]
    if announced and trust.digest != announced:
        raise VerificationError(
            f"the coordinator announced another manifest of study {study} than it hands out",
            why="perhaps a new version came in between",
        )
    require_member(trust, site.member.credential)
    require_coordinator_in_force(site, trust)
    _check_library(trust)
    data_set = admit_by_policy(site, trust)
    check_digest(trust.manifest.task.name, trust.manifest.task.code_digest)
    if (
        site.studies.row(study) is None
        or not site.models.path(trust.manifest.initial_weights_digest).exists()
    ):
        fetch_initial_weights(site, client, trust)
    site.studies.accept(accepted, data_set)
    site.log.info(
        "study admitted",
        study=study,
        version=trust.manifest.version,
        sites=len(trust.sites),
        rounds=trust.manifest.rounds,
        data_set=data_set,
    )


def _versions(site: Site, client: CoordinatorClient, study: str) -> list[tuple[StudyTrust, Signed]]:
    """All versions, oldest first, each naming the digest of the one before it."""
    newest = client.manifest(study)
    count = verify_manifest(newest, site.member.anchor).manifest.version
    if not 1 <= count <= MAX_VERSIONS:
        raise VerificationError(f"the manifest of study {study} has version {count}")
    accepted: list[tuple[StudyTrust, Signed]] = []
    for version in range(1, count + 1):
        signed = newest if version == count else client.manifest(study, version)
        trust = verify_manifest(signed, site.member.anchor)
        if (trust.manifest.study, trust.manifest.version) != (study, version):
            raise VerificationError(
                f"the coordinator handed out another manifest than version {version} of study {study}"
            )
        if accepted:
            verify_successor(accepted[-1][0], trust)
        accepted.append((trust, signed))
    return accepted


def _check_library(trust: StudyTrust) -> None:
    suite = trust.manifest.suite
    installed = trust.params.library
    if installed != suite.library:
        raise VerificationError(
            f"study {trust.manifest.study} needs {suite.library[:80]}, installed here is {installed}",
            why="ciphertext formats differ between releases of the library",
            fix=f"Install it: pip install '{suite.library[:80].replace(' ', '==')}'",
        )


def fetch_initial_weights(site: Site, client: CoordinatorClient, trust: StudyTrust) -> None:
    """Store the initial weights that the manifest names; raises VerificationError for any others."""
    manifest = trust.manifest
    content = client.initial_weights(manifest.study, manifest.version, 4 * manifest.parameter_count)
    weights = np.frombuffer(content, dtype="<f4").astype(np.float32)
    if model_digest(weights) != manifest.initial_weights_digest:
        raise VerificationError(
            f"the initial weights of study {manifest.study} are not the ones that its manifest names",
            why="the coordinator handed out another model",
        )
    if not np.isfinite(weights).all():
        raise VerificationError(f"the initial weights of study {manifest.study} are not finite")
    site.models.put(weights)
