"""A site's long-term sealing key: what other sites seal the shared key and models to. Kept apart from the
rest of the member's folder, since the coordinator loads that, and must not load code that holds decryption
keys."""

from __future__ import annotations

from pathlib import Path

from cipherward.crypto.pki.member_files import make_once
from cipherward.crypto.sealing import SealingKey
from cipherward.durable import read_secret
from cipherward.errors import IdentityError

SEALING_KEY = "sealing.key"


def ensure_sealing_key(folder: Path) -> bytes:
    """The public half of the folder's sealing key, made now if there is none."""
    return SealingKey.from_bytes(
        make_once(folder / SEALING_KEY, lambda: SealingKey.generate().to_bytes())
    ).public()


def load_sealing_key(folder: Path, expected_public: bytes) -> SealingKey:
    """The site's sealing key, if its public half is the credential's; raises IdentityError, FormatError or
    EnvironmentProblem."""
    key = SealingKey.from_bytes(read_secret(folder / SEALING_KEY))
    if key.public() != expected_public:
        raise IdentityError(
            f"{folder / SEALING_KEY} does not belong to the credential beside it",
            why="one of them was replaced, or restored from another backup",
            fix="Restore the whole folder, or begin again in an empty one and have it approved",
        )
    return key
