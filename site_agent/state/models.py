"""Model files: flat float32 weights, named by their digest. The database says which one is in force, so
that the transaction that names a model is the moment it takes effect."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cipherward.crypto.transcript import model_digest, vector_bytes
from cipherward.durable import discard, explained, read_file, write_file
from cipherward.errors import EnvironmentProblem
from cipherward.ids import Digest

MAX_MODEL_BYTES = 4 * 2**30


class ModelStore:
    """Models by digest in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, digest: bytes) -> Path:
        """Where the model of that digest lies."""
        return self._folder / f"{digest.hex()}.f32"

    def put(self, weights: NDArray[np.float32]) -> Digest:
        """Store durably; returns the digest. Storing the same model again does nothing."""
        digest = model_digest(weights)
        if not self.path(digest).exists():
            write_file(self.path(digest), vector_bytes(weights), mode=0o600)
        return digest

    def get(self, digest: bytes) -> NDArray[np.float32]:
        """The weights, shape (parameters,), float32. Raises EnvironmentProblem if missing or damaged."""
        weights = np.frombuffer(read_file(self.path(digest), limit=MAX_MODEL_BYTES), dtype="<f4")
        if model_digest(weights) != digest:
            raise EnvironmentProblem(
                f"the model file {self.path(digest)} is damaged",
                why="its content does not have the digest in its name",
                fix="Move it away; the agent then fetches the model from another site",
            )
        return weights.astype(np.float32)

    def discard(self, digest: bytes) -> None:
        """Remove a model that a newer one has replaced. On a failing disk it stays until the agent's next start."""
        discard(self.path(digest))

    def keep_only(self, digests: set[bytes]) -> None:
        """Remove models that nothing refers to any more."""
        wanted = {self.path(digest).name for digest in digests}
        with explained("tidy", self._folder):
            for path in self._folder.glob("*.f32"):
                if path.name not in wanted:
                    path.unlink(missing_ok=True)
