"""Files of one round: the trained update, and the encrypted chunks of the current attempt, so that an
upload that broke off goes on with the same bytes. The update is this hospital's own: 0600, and removed when
the round is over.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cipherward.crypto import merkle
from cipherward.crypto.labels import Label, digest
from cipherward.durable import explained, fsync_directory, read_secret, write_secret
from cipherward.errors import EnvironmentProblem
from cipherward.ids import Digest
from cipherward.site_agent.state.folder import private_folder


class Outbox:
    """The files of one (study, round)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def _vector(self) -> Path:
        return self._folder / "update.f32"

    def _chunks(self, attempt: int) -> Path:
        return self._folder / f"attempt-{attempt}"

    def put_update(self, vector: NDArray[np.float32]) -> Digest:
        """Store what will be encrypted; durable on return. Returns its digest."""
        private_folder(self._folder)
        content = np.ascontiguousarray(vector, dtype="<f4").tobytes()
        # A file that the journal does not name yet was left by a crash: replaced.
        write_secret(self._vector, content, replace=True)
        return digest(Label.FILE_DIGEST, content)

    def update(self, expected: bytes) -> NDArray[np.float32]:
        """The stored vector, float32; raises EnvironmentProblem if it is not the journalled one."""
        content = _read_large_secret(self._vector)
        if digest(Label.FILE_DIGEST, content) != expected:
            raise EnvironmentProblem(
                f"the journalled update {self._vector} is damaged",
                why="its digest differs from the journal's",
            )
        return np.frombuffer(content, dtype="<f4").astype(np.float32)

    def put_chunks(self, attempt: int, chunks: Iterable[bytes]) -> list[Digest]:
        """Store the encrypted chunks; durable on return. Returns their leaf hashes (RFC 9162)."""
        folder = self._chunks(attempt)
        if folder.exists():
            shutil.rmtree(folder)
        private_folder(folder)
        leaves = []
        for index, chunk in enumerate(chunks):
            with explained("write", folder), (folder / f"{index:06d}").open("xb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            leaves.append(merkle.leaf_hash(chunk))
        fsync_directory(folder)
        fsync_directory(folder.parent)
        return leaves

    def chunk(self, attempt: int, index: int) -> bytes:
        """One stored chunk; raises EnvironmentProblem."""
        return read_secret(self._chunks(attempt) / f"{index:06d}")

    def leaves(self, attempt: int, count: int) -> Iterator[Digest]:
        """Leaf hashes of the stored chunks, read again from disk."""
        return (merkle.leaf_hash(self.chunk(attempt, index)) for index in range(count))

    def discard(self) -> None:
        """Remove everything of the round; does nothing if nothing is there."""
        with explained("remove", self._folder):
            if self._folder.exists():
                shutil.rmtree(self._folder)


def _read_large_secret(path: Path) -> bytes:
    with explained("read", path):
        return path.read_bytes()
