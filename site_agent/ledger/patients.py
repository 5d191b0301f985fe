"""Patients as the ledger knows them: by keyed digests, so that a renamed or overlapping data set is
recognised without the ledger holding a single patient id."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from cipherward.crypto.labels import Label, digest, framed
from cipherward.durable import read_secret, write_secret
from cipherward.errors import FormatError, UsageError
from cipherward.ids import DIGEST_BYTES, Digest
from cipherward.site_agent.patient_ids import canonical

KEY_BYTES = 32


class PatientKey:
    """The site's secret for patient digests. Whoever has it can test guesses of patient ids against the
    ledger; whoever loses it cannot tell who was charged before."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise FormatError(f"the patient key has {len(key)} bytes", why=f"it must have {KEY_BYTES}")
        self._key = key

    @classmethod
    def create(cls, path: Path) -> PatientKey:
        """A new key in a new file of mode 0600. Raises EnvironmentProblem, also if the file exists."""
        key = secrets.token_bytes(KEY_BYTES)
        write_secret(path, key)
        return cls(key)

    @classmethod
    def read(cls, path: Path) -> PatientKey:
        """Raises EnvironmentProblem if the file is missing or others may read it, FormatError if no key."""
        return cls(read_secret(path))

    def digest(self, patient_id: str) -> Digest:
        """HMAC-SHA256 of one patient's id. Spaces around it and Unicode spelling variants don't matter."""
        name = canonical(patient_id)
        if not name:
            raise UsageError("a patient id is empty", why="privacy is counted per patient")
        return self._mac(b"id", name.encode())

    def digests(self, patient_ids: Iterable[str]) -> list[Digest]:
        """Each patient once, sorted. Raises UsageError for an empty id, or if there are none."""
        found = sorted({self.digest(patient_id) for patient_id in patient_ids})
        if not found:
            raise UsageError("the data set has no patients", fix="Check the data set's source in policy.toml")
        return found

    def check_value(self) -> Digest:
        """Shows whether two keys are the same, and nothing else about them."""
        return self._mac(b"check", b"")

    def _mac(self, purpose: bytes, message: bytes) -> Digest:
        return Digest(hmac.digest(self._key, framed(Label.PATIENT, purpose, message), "sha256"))

    def __repr__(self) -> str:
        return "PatientKey(OMITTED)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a patient key is not pickled")


def set_digest(digests: Iterable[bytes]) -> Digest:
    """Names a set of patients: a hash over its digests, which must come sorted, each once."""
    running = hashlib.sha256()
    for item in digests:
        if len(item) != DIGEST_BYTES:
            raise FormatError(f"a patient's digest has {len(item)} bytes", why=f"it must have {DIGEST_BYTES}")
        running.update(item)
    return digest(Label.PATIENT, b"set", running.digest())
