"""Files of one round: the trained update; the encrypted chunks and sealed shares of the current attempt, so that
an upload that broke off goes on with the same bytes; and the sum, fetched once. The update is this hospital's
own: 0600, and removed when the round is over.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cipherward.crypto import merkle
from cipherward.crypto.labels import Label, digest
from cipherward.crypto.transcript import vector_bytes
from cipherward.durable import discard, explained, fsync_directory, write_secret
from cipherward.errors import EnvironmentProblem
from cipherward.ids import Digest
from cipherward.site_agent.state.folder import private_folder

_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


class Outbox:
    """The files of one (study, round)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def _vector(self) -> Path:
        return self._folder / "update.f32"

    def _chunks(self, attempt: int) -> Path:
        return self._folder / f"attempt-{attempt}.chunks"

    def _shares(self, attempt: int) -> Path:
        return self._folder / f"attempt-{attempt}.shares"

    @property
    def _sum(self) -> Path:
        return self._folder / "sum.chunks"

    def put_update(self, vector: NDArray[np.float32]) -> Digest:
        """Store what will be encrypted; durable on return. Returns its digest."""
        private_folder(self._folder)
        content = vector_bytes(vector)
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
        """Store the encrypted chunks; durable on return. Returns their leaf hashes (RFC 9162).

        What is left of earlier attempts is removed: only the newest one is ever sent.
        """
        with explained("remove the attempts before in", self._folder):
            for path in self._folder.glob("attempt-*"):
                path.unlink()
        return _put(self._chunks(attempt), chunks)

    def chunks(self, attempt: int, sizes: Sequence[int], first: int = 0) -> Iterator[bytes]:
        """The stored chunks from ``first`` on; raises EnvironmentProblem for a file of another size."""
        return _read(self._chunks(attempt), sizes, first)

    def put_shares(self, attempt: int, shares: Iterable[bytes]) -> list[Digest]:
        """Store the sealed shares of the attempt's key; as ``put_chunks``."""
        return _put(self._shares(attempt), shares)

    def shares(self, attempt: int, sizes: Sequence[int], first: int = 0) -> Iterator[bytes]:
        """The sealed shares from ``first`` on; as ``chunks``."""
        return _read(self._shares(attempt), sizes, first)

    def put_sum(self, chunks: Iterable[bytes]) -> list[Digest]:
        """Store the round's encrypted sum; as ``put_chunks``, but a power cut may take it: it is fetched again."""
        return _put(self._sum, chunks, durable=False)

    def sum(self, sizes: Sequence[int]) -> Iterator[bytes]:
        """The stored sum; as ``chunks``."""
        return _read(self._sum, sizes, 0)

    def discard(self) -> None:
        """Remove everything of the round; does nothing if nothing is there."""
        with explained("remove", self._folder):
            if self._folder.exists():
                shutil.rmtree(self._folder)


def _put(path: Path, pieces: Iterable[bytes], *, durable: bool = True) -> list[Digest]:
    """One file for all pieces, synced once: a file for each would cost a disk write for each."""
    private_folder(path.parent)
    leaves = []
    try:
        with explained("write", path), os.fdopen(os.open(path, _NEW, 0o600), "wb") as file:
            for piece in pieces:
                file.write(piece)
                leaves.append(merkle.leaf_hash(piece))
            if durable:
                file.flush()
                os.fsync(file.fileno())
    except BaseException:
        # On a full disk the half that was written would leave no room for the journal.
        discard(path)
        raise
    if durable:
        fsync_directory(path.parent)
    return leaves


def _read(path: Path, sizes: Sequence[int], first: int) -> Iterator[bytes]:
    with explained("read", path), path.open("rb") as file:
        if os.fstat(file.fileno()).st_size != sum(sizes):
            raise EnvironmentProblem(f"{path} is incomplete", why="its writing was interrupted")
        file.seek(sum(sizes[:first]))
        for size in sizes[first:]:
            piece = file.read(size)
            if len(piece) != size:
                raise EnvironmentProblem(f"{path} was cut short while it was read")
            yield piece


def _read_large_secret(path: Path) -> bytes:
    with explained("read", path):
        return path.read_bytes()
