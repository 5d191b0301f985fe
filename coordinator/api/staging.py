"""The two parts of an upload on their way to disk: the update's chunks, then (quorum) the sealed shares.

Each message is measured, hashed and checked as it comes, by the event loop: some 20 microseconds for a chunk of 32
KiB, at most 2 ms for the largest message. In other threads it takes longer: the interpreter's lock changes hands
around every hash.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from cipherward.coordinator.blobs.blobs import Blobs
from cipherward.coordinator.blobs.writer import SegmentWriter
from cipherward.coordinator.daemon.view import StudyView, Version
from cipherward.coordinator.store.chunks import Segment
from cipherward.crypto.merkle import leaf_hash
from cipherward.crypto.quorum_records import SEALED_SHARE_BYTES
from cipherward.crypto.suites.base import KeyLifetime
from cipherward.errors import FormatError, ProtocolError
from cipherward.proto.v1.coordinator_pb2 import UploadMessage


def shares_of(view: StudyView, version: Version) -> int:
    """Shares that belong to an upload under the view's plan: n in the quorum suite, else none."""
    if version.trust.key_lifetime is not KeyLifetime.ATTEMPT or view.plan is None:
        return 0
    return len(view.plan.members)


@dataclass(frozen=True, slots=True)
class Part:
    """What a message brought. Taken out of it once: each look into a message copies."""

    index: int
    data: bytes
    claimed: bytes
    """The leaf hash that was sent with it, if one is."""


class Stage(ABC):
    """Messages of one chunk set: taken in order, written in segments."""

    def __init__(self, name: str, stored: int, blobs: Blobs) -> None:
        self.name, self.stored = name, stored
        self._writer = SegmentWriter(blobs, stored)
        self._pending: list[tuple[bytes, bytes]] = []
        self.received = stored
        """Messages taken so far, those of earlier calls included."""
        self.waiting = 0
        """Bytes taken and not yet written."""

    @abstractmethod
    def take(self, message: UploadMessage) -> None:
        """Accept the next message: its place, size, digest and structure. Raises FormatError or ProtocolError."""

    @abstractmethod
    def _check(self, part: Part) -> bytes:
        """Its leaf hash, once that and its structure are found right; raises FormatError."""

    def _accept(self, part: Part) -> None:
        self._pending.append((part.data, self._check(part)))
        self.received += 1
        self.waiting += len(part.data)

    def _in_order(self, what: str, index: int) -> None:
        if index != self.received:
            raise ProtocolError(
                f"{what} {index} came where {self.received} was expected",
                fix="Ask GetUploadState where to resume",
            )

    def cut(self) -> list[tuple[bytes, bytes]]:
        """What was taken and not yet written, with its leaf hashes; it is for ``write`` from here on."""
        parts, self._pending, self.waiting = self._pending, [], 0
        return parts

    def write(self, parts: list[tuple[bytes, bytes]]) -> Segment | None:
        """Make durable what was cut; None if that is nothing. Blocks, and may run beside ``take`` in another
        thread.

        Raises EnvironmentProblem.
        """
        for data, leaf in parts:
            self._writer.add(data, leaf)
        return self._writer.flush()


class ChunkStage(Stage):
    """The chunks of an update."""

    def __init__(self, name: str, stored: int, blobs: Blobs, version: Version) -> None:
        super().__init__(name, stored, blobs)
        self._version = version
        self.total = len(version.chunk_sizes)

    def take(self, message: UploadMessage) -> None:
        """The next chunk, of its exact size."""
        index, data = message.index, message.data
        self._in_order("chunk", index)
        if index >= self.total:
            raise FormatError(f"an update of this study has {self.total} chunks")
        if len(data) != self._version.chunk_sizes[index]:
            raise FormatError(f"chunk {index} has {len(data)} bytes, not its size")
        self._accept(Part(index, data, message.leaf_hash))

    def _check(self, part: Part) -> bytes:
        leaf = leaf_hash(part.data)
        if leaf != part.claimed:
            raise FormatError(
                f"chunk {part.index} does not have the digest sent with it", why="it was damaged"
            )
        self._version.params.check_upload_chunk(part.data, part.index, self._version.length)
        return leaf


class ShareStage(Stage):
    """The sealed shares that go with an update, in the order of J. Nobody but their receivers can look inside."""

    def __init__(self, name: str, stored: int, blobs: Blobs, total: int) -> None:
        super().__init__(name, stored, blobs)
        self.total = total

    def require_begin(self, chunks: ChunkStage) -> None:
        """Raises FormatError in a suite without shares, ProtocolError before the last chunk."""
        if not self.total:
            raise FormatError("an upload of this suite holds chunks only")
        if chunks.received != chunks.total:
            raise ProtocolError(f"shares come after chunk {chunks.total - 1}", why="chunks are missing")

    def take(self, message: UploadMessage) -> None:
        """The next share, of the one size that a sealed share has."""
        if not message.HasField("share") or message.data or message.leaf_hash:
            raise FormatError("a message with something else came among the shares")
        share = message.share
        index, sealed = share.index, share.sealed
        if share.inclusion or share.HasField("commit"):
            raise FormatError("an uploaded share comes without proof and commit")
        self._in_order("share", index)
        if index >= self.total:
            raise FormatError(f"an update of this round has {self.total} shares")
        if len(sealed) != SEALED_SHARE_BYTES:
            raise FormatError(
                f"a sealed share has {len(sealed)} bytes", why=f"it must have {SEALED_SHARE_BYTES}"
            )
        self._accept(Part(index, sealed, b""))

    def _check(self, part: Part) -> bytes:
        return leaf_hash(part.data)
