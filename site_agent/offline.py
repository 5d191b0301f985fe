"""A site's folder as its commands see it, with the daemon running or not: no network, no member's keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from cipherward.clock import Clock
from cipherward.crypto.pki.member_files import read_anchor, read_request
from cipherward.errors import EnvironmentProblem
from cipherward.ids import Identity
from cipherward.site_agent.ledger.accountant import LocalAccountant
from cipherward.site_agent.ledger.ledger import Ledger
from cipherward.site_agent.ledger.patients import PatientKey
from cipherward.site_agent.policy import Policy
from cipherward.site_agent.policy import load as load_policy
from cipherward.site_agent.state.folder import SiteFolder
from cipherward.site_agent.state.opening import open_state
from cipherward.site_agent.state.studies import StudyStore


@dataclass(frozen=True, eq=False)
class Offline:
    """An opened folder."""

    folder: SiteFolder
    identity: Identity
    policy: Policy
    engine: Engine
    ledger: Ledger
    studies: StudyStore


def patient_key(folder: SiteFolder) -> PatientKey:
    """Made on first use. A ledger that was made with another one refuses it."""
    if not folder.patient_key.exists():
        return PatientKey.create(folder.patient_key)
    return PatientKey.read(folder.patient_key)


@contextmanager
def open_offline(root: Path, clock: Clock) -> Iterator[Offline]:
    """Open and afterwards close a site's folder. Raises EnvironmentProblem or UsageError."""
    folder = SiteFolder(root)
    if not folder.policy.exists():
        raise EnvironmentProblem(
            f"{root} is not a site's folder",
            why=f"it has no {folder.policy.name}",
            fix="Check --dir, or run `cipherward site init` first",
        )
    read_anchor(root)
    engine = open_state(folder)
    try:
        yield Offline(
            folder,
            read_request(root).identity,
            load_policy(folder.policy),
            engine,
            Ledger(engine, patient_key(folder), accountant=LocalAccountant(), clock=clock),
            StudyStore(engine),
        )
    finally:
        engine.dispose()
