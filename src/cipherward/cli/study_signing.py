"""From study.toml to a signed manifest: the work behind ``consortium sign-study``."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cipherward.cli.membership import emit
from cipherward.clock import SystemClock
from cipherward.crypto.labels import Label
from cipherward.crypto.manifest import build_manifest, verify_manifest
from cipherward.crypto.pki import fingerprint
from cipherward.crypto.pki.anchor import Anchor
from cipherward.crypto.pki.armour import Kind, armour_signed, unarmour_signed
from cipherward.crypto.pki.consortium_folder import ConsortiumFolder
from cipherward.crypto.pki.credentials import Credential
from cipherward.crypto.pki.member_files import MAX_TEXT_BYTES
from cipherward.crypto.records import StudyTrust
from cipherward.crypto.study_file import StudyFile
from cipherward.crypto.transcript import model_digest
from cipherward.crypto.trust_statement import trust_statement
from cipherward.durable import explained, read_file, write_file
from cipherward.errors import UsageError
from cipherward.ids import Identity, Role


def sign(
    study: Path,
    weights: Path,
    folder: Path,
    *,
    task_seed: int | None,
    previous: Path | None,
    out: Path,
    passphrase: Callable[[], str],
    json: bool,
) -> None:
    """Check everything, then ask for the passphrase, sign, verify and write. Raises UsageError for what the file
    gets wrong, EnvironmentProblem, VerificationError."""
    if out.exists():
        raise UsageError(
            f"{out} exists already", why="a signed manifest is not overwritten", fix="Choose another --out"
        )
    now = SystemClock().now()
    file = StudyFile.load(study)
    consortium = ConsortiumFolder(folder)
    sites, coordinator = _members(consortium, file, now)
    task_digest = bytes.fromhex(file.task.code_digest) or _installed_task(file.task.name)
    values = _weights(weights, file.task.name, task_digest, task_seed)
    manifest = build_manifest(
        file,
        anchor=consortium.anchor,
        sites=sites,
        coordinator=coordinator,
        revocations=consortium.status(),
        task_code_digest=task_digest,
        initial_weights_digest=model_digest(values),
        parameter_count=values.size,
        previous=_previous(previous, consortium.anchor),
        now=now,
    )
    signed = consortium.unlock(passphrase()).sign(Label.MANIFEST, manifest)
    trust = verify_manifest(signed, consortium.anchor)
    write_file(out, armour_signed(Kind.MANIFEST, signed), replace=False)
    shown = fingerprint.show(trust.digest)
    names = list(trust.sites)
    emit(
        json,
        {
            "study": manifest.study,
            "version": manifest.version,
            "digest": shown,
            "sites": names,
            "trust": trust_statement(manifest),
            "parameters": manifest.parameter_count,
            "task_digest": task_digest.hex(),
            "manifest": str(out),
            "weights": str(weights),
        },
        [
            f"Study {manifest.study}, version {manifest.version}: signed in {out}.",
            f"{len(names)} sites: {', '.join(names)}; at least {manifest.minimum_cohort} in every sum.",
            trust_statement(manifest),
            f"{manifest.parameter_count} parameters, {manifest.rounds} rounds, task {manifest.task.name} with "
            f"code {task_digest.hex()[:16]}...",
            f"Digest: {shown}",
            f"Give {out} and {weights} to the operator.",
        ],
    )


def _members(
    consortium: ConsortiumFolder, file: StudyFile, now: float
) -> tuple[list[Credential], Credential]:
    name = consortium.anchor.consortium
    sites = [Identity.make(name, Role.SITE, site) for site in file.cohort.sites]
    sites = sites or consortium.members(Role.SITE, now)
    hub = Identity.make(name, Role.COORDINATOR, file.study.coordinator)
    return [consortium.credential(site, now) for site in sites], consortium.credential(hub, now)


def _installed_task(name: str) -> bytes:
    from cipherward.site_agent.tasks.registry import task_digest

    return task_digest(name)


def _weights(path: Path, task: str, digest: bytes, seed: int | None) -> NDArray[np.float32]:
    if seed is not None:
        if path.exists():
            raise UsageError(
                f"{path} exists already",
                why="--task-seed would overwrite it",
                fix="Leave --task-seed out to use the file, or choose another --weights",
            )
        values = _made(task, digest, seed)
        write_file(path, values.astype("<f4").tobytes(), replace=False)
        return values
    with explained("read", path):
        content = np.fromfile(path, dtype=np.uint8)
    if content.size == 0 or content.size % 4:
        raise UsageError(f"{path} is not a file of float32 weights", why=f"it has {content.size} bytes")
    values = content.view("<f4").astype(np.float32)
    if not np.isfinite(values).all():
        raise UsageError(f"{path} has weights that are not finite")
    return values


def _made(task: str, digest: bytes, seed: int) -> NDArray[np.float32]:
    """The task's own initial model, built in the trainer's processes: torch is never loaded here."""
    from cipherward.site_agent.training.client import TaskRef, Trainer

    with tempfile.TemporaryDirectory(prefix="cipherward-") as folder:
        trainer = Trainer(Path(folder) / "trainer.sock", jobs=1)
        try:
            return trainer.initial_weights(TaskRef(task, digest), seed)
        finally:
            trainer.close()


def _previous(path: Path | None, anchor: Anchor) -> StudyTrust | None:
    if path is None:
        return None
    return verify_manifest(unarmour_signed(Kind.MANIFEST, read_file(path, limit=MAX_TEXT_BYTES)), anchor)
