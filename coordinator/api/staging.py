"""The two parts of an upload on their way to disk: the update's chunks, then (quorum) the sealed shares. Each
message is measured when it comes, and looked into only in the thread that makes its segment durable."""

from __future__ import annotations

from abc import ABC, abstractmethod

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


class Stage(ABC):
    """Messages of one chunk set: taken in order, written in segments."""

    def __init__(self, name: str, stored: int, blobs: Blobs) -> None:
        self.name, self.stored = name, stored
        self._writer = SegmentWriter(blobs, stored)
        self._pending: list[UploadMessage] = []
        self.received = stored
        """Messages taken so far, those of earlier calls included."""
        self.waiting = 0
        """Bytes taken and not yet written."""

    @abstractmethod
    def take(self, message: UploadMessage) -> None:
        """Accept the next message by its place and size; raises FormatError or ProtocolError."""

    @abstractmethod
    def _check(self, message: UploadMessage) -> tuple[bytes, bytes]:
        """The bytes to store and their leaf hash, once their structure is checked; raises FormatError."""

    def _accept(self, message: UploadMessage, size: int) -> None:
        self._pending.append(message)
        self.received += 1
        self.waiting += size

    def _in_order(self, what: str, index: int) -> None:
        if index != self.received:
            raise ProtocolError(
                f"{what} {index} came where {self.received} was expected",
                fix="Ask GetUploadState where to resume",
            )

    def cut(self) -> list[UploadMessage]:
        """What was taken and not yet written; it is for ``write`` from here on."""
        part, self._pending, self.waiting = self._pending, [], 0
        return part

    def write(self, part: list[UploadMessage]) -> Segment | None:
        """Make durable what was cut; None if that is nothing. Blocks, and may run beside ``take`` in another
        thread.

        Raises FormatError for bytes of a wrong structure, EnvironmentProblem.
        """
        for message in part:
            self._writer.add(*self._check(message))
        return self._writer.flush()


class ChunkStage(Stage):
    """The chunks of an update."""

    def __init__(self, name: str, stored: int, blobs: Blobs, version: Version) -> None:
        super().__init__(name, stored, blobs)
        self._version = version
        self.total = version.params.chunk_count(version.length)

    def take(self, message: UploadMessage) -> None:
        """The next chunk, of its exact size."""
        self._in_order("chunk", message.index)
        if message.index >= self.total:
            raise FormatError(f"an update of this study has {self.total} chunks")
        if len(message.data) != self._version.params.upload_chunk_bytes(message.index, self._version.length):
            raise FormatError(f"chunk {message.index} has {len(message.data)} bytes, not its size")
        self._accept(message, len(message.data))

    def _check(self, message: UploadMessage) -> tuple[bytes, bytes]:
        if leaf_hash(message.data) != message.leaf_hash:
            raise FormatError(
                f"chunk {message.index} does not have the digest sent with it", why="it was damaged"
            )
        self._version.params.check_upload_chunk(message.data, message.index, self._version.length)
        return message.data, message.leaf_hash


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
        if share.inclusion or share.HasField("commit"):
            raise FormatError("an uploaded share comes without proof and commit")
        self._in_order("share", share.index)
        if share.index >= self.total:
            raise FormatError(f"an update of this round has {self.total} shares")
        if len(share.sealed) != SEALED_SHARE_BYTES:
            raise FormatError(
                f"a sealed share has {len(share.sealed)} bytes", why=f"it must have {SEALED_SHARE_BYTES}"
            )
        self._accept(message, len(share.sealed))

    def _check(self, message: UploadMessage) -> tuple[bytes, bytes]:
        return message.share.sealed, leaf_hash(message.share.sealed)
