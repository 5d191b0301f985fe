"""Gathers chunks into segments: memory holds one at a time, and the disk is synced once for each."""

from __future__ import annotations

from cipherward.coordinator.blobs.blobs import Blobs
from cipherward.coordinator.store.chunks import Segment

SEGMENT_BYTES = 2 * 2**20


class SegmentWriter:
    """Collects the chunks behind ``first``. ``flush`` makes a stored segment of what has been collected."""

    def __init__(self, blobs: Blobs, first: int) -> None:
        self._blobs = blobs
        self._first = first
        self._chunks: list[bytes] = []
        self._leaves: list[bytes] = []
        self._bytes = 0

    @property
    def next_index(self) -> int:
        """Index of the chunk to be added next."""
        return self._first + len(self._chunks)

    @property
    def full(self) -> bool:
        """Time to flush."""
        return self._bytes >= SEGMENT_BYTES

    def add(self, chunk: bytes, leaf: bytes) -> None:
        """Collect one chunk with its leaf hash, which the caller has checked."""
        self._chunks.append(chunk)
        self._leaves.append(leaf)
        self._bytes += len(chunk)

    def flush(self) -> Segment | None:
        """Store what was collected as one blob; None if there was nothing. Blocks on the disk.

        Raises EnvironmentProblem; what was collected is then still here.
        """
        if not self._chunks:
            return None
        blob = self._blobs.put(self._chunks)
        segment = Segment(self._first, blob, tuple(len(chunk) for chunk in self._chunks), tuple(self._leaves))
        self._first = segment.end
        self._chunks, self._leaves, self._bytes = [], [], 0
        return segment
