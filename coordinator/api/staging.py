"""The two parts of an upload on their way to disk: the update's chunks, then (quorum) the sealed shares.

Each message is measured as it comes, and copied to memory that the inspecting process sees as well. That one hashes
and checks what came, run by run, before it is written.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from cipherward.coordinator.api.inspection import Inspection, named
from cipherward.coordinator.blobs.blobs import Blobs
from cipherward.coordinator.blobs.buffers import Buffer
from cipherward.coordinator.daemon.view import StudyView, Version
from cipherward.coordinator.store.chunks import Segment
from cipherward.crypto.quorum_records import SEALED_SHARE_BYTES
from cipherward.crypto.suites.base import KeyLifetime
from cipherward.errors import FormatError, ProtocolError
from cipherward.ids import DIGEST_BYTES
from cipherward.proto.v1.coordinator_pb2 import UploadMessage


def shares_of(view: StudyView, version: Version) -> int:
    """Shares that belong to an upload under the view's plan: n in the quorum suite, else none."""
    if version.trust.key_lifetime is not KeyLifetime.ATTEMPT or view.plan is None:
        return 0
    return len(view.plan.members)


@dataclass(slots=True)
class Run:
    """Messages behind each other on their way to disk."""

    first: int
    buffer: Buffer
    sizes: list[int] = field(default_factory=list)
    claimed: list[bytes] = field(default_factory=list)
    """The leaf hashes that were sent with them, if any are."""


class Stage(ABC):
    """Messages of one chunk set: taken in order, checked and written in runs."""

    def __init__(self, name: str, stored: int, blobs: Blobs, inspection: Inspection) -> None:
        self.name, self.stored = name, stored
        self._blobs, self._inspection = blobs, inspection
        self._run: Run | None = None
        self.received = stored
        """Messages taken so far, those of earlier calls included."""
        self.waiting = 0
        """Bytes taken and not yet written."""

    @abstractmethod
    def take(self, message: UploadMessage) -> None:
        """Accept the next message: its place and size. Raises FormatError or ProtocolError."""

    @abstractmethod
    def check(self, run: Run) -> list[bytes]:
        """The leaf hashes of what was cut, once these and the structure are found right. Blocks, and may run beside
        ``take`` in another thread, as ``write`` may. Raises FormatError, UnavailableError."""

    def _accept(self, data: bytes) -> Run:
        run = self._run
        if run is None:
            run = self._run = Run(self.received, self._inspection.buffers.take())
        run.buffer.add(data)
        run.sizes.append(len(data))
        self.received += 1
        self.waiting += len(data)
        return run

    def _in_order(self, what: str, index: int) -> None:
        if index != self.received:
            raise ProtocolError(
                f"{what} {index} came where {self.received} was expected",
                fix="Ask GetUploadState where to resume",
            )

    def cut(self) -> Run | None:
        """What was taken and not yet written; from here on it is for ``check``, ``write`` and then ``drop``."""
        run, self._run, self.waiting = self._run, None, 0
        return run

    def write(self, run: Run, leaves: Sequence[bytes]) -> Segment:
        """Make durable what was found right; raises EnvironmentProblem."""
        blob = self._blobs.put(run.buffer.content)
        return Segment(run.first, blob, tuple(run.sizes), tuple(leaves))

    def erase(self, segment: Segment) -> None:
        """What was written is not to be recorded."""
        self._blobs.discard([segment.blob])

    def drop(self, run: Run | None) -> None:
        """It is needed no more."""
        if run is not None:
            self._inspection.buffers.give_back(run.buffer)


class ChunkStage(Stage):
    """The chunks of an update."""

    def __init__(
        self, name: str, stored: int, blobs: Blobs, inspection: Inspection, version: Version
    ) -> None:
        super().__init__(name, stored, blobs, inspection)
        self._sizes, self._length = version.chunk_sizes, version.length
        self._params = named(version.params, len(version.trust.manifest.roster))
        self.total = len(self._sizes)

    def take(self, message: UploadMessage) -> None:
        """The next chunk, of its exact size."""
        index, data = message.index, message.data
        self._in_order("chunk", index)
        if index >= self.total:
            raise FormatError(f"an update of this study has {self.total} chunks")
        if len(data) != self._sizes[index]:
            raise FormatError(f"chunk {index} has {len(data)} bytes, not its size")
        claimed = message.leaf_hash
        if len(claimed) != DIGEST_BYTES:
            raise FormatError(
                f"chunk {index} does not have the digest sent with it", why=f"that has {len(claimed)} bytes"
            )
        self._accept(data).claimed.append(claimed)

    def check(self, run: Run) -> list[bytes]:
        """The digests that were sent with them, each found right."""
        self._inspection.chunks(run.buffer, run.first, run.sizes, run.claimed, self._params, self._length)
        return run.claimed


class ShareStage(Stage):
    """The sealed shares that go with an update, in the order of J. Nobody but their receivers can look inside."""

    def __init__(self, name: str, stored: int, blobs: Blobs, inspection: Inspection, total: int) -> None:
        super().__init__(name, stored, blobs, inspection)
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
        self._accept(sealed)

    def check(self, run: Run) -> list[bytes]:
        """Nothing but their hashes."""
        return self._inspection.leaves(run.buffer, run.sizes)
