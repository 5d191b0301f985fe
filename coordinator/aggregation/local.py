"""The engine on this machine: one worker process of the suite does the native part."""

from __future__ import annotations

from collections.abc import Callable

from cipherward.coordinator.aggregation.base import Stopped, SumJob
from cipherward.coordinator.blobs.blobs import Blobs
from cipherward.coordinator.blobs.writer import SegmentWriter
from cipherward.coordinator.store.chunks import ChunkSet, Segment
from cipherward.crypto.merkle import leaf_hash
from cipherward.errors import EnvironmentProblem, FormatError

_FIX = "Check the coordinator's disk or object store; cipherward coordinator fsck names what is damaged"


class LocalEngine:
    """See ``Engine``."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    def run(self, job: SumJob, store: Callable[[Segment], None], stop: Callable[[], bool]) -> ChunkSet:
        """The complete sum; continues behind the chunks that are done."""
        total = job.done
        writer = SegmentWriter(self._blobs, total.count)

        def flush(total: ChunkSet) -> ChunkSet:
            segment = writer.flush()
            if segment is None:
                return total
            store(segment)
            return total.extended(segment)

        with job.adder() as adder:
            for index in range(total.count, job.chunk_count):
                if stop():
                    raise Stopped
                chunks = (self._committed(update, index) for update in job.updates)
                chunk = adder.add(chunks, index, job.length)
                writer.add(chunk, leaf_hash(chunk))
                if writer.full:
                    total = flush(total)
            return flush(total)

    def _committed(self, update: ChunkSet, index: int) -> bytes:
        """The chunk, if it still is the one whose leaf is under the root that its site committed.

        Most wrong bits make another ciphertext that is as good as any: nothing behind this would notice.
        """
        place = update.place(index)
        try:
            chunk = self._blobs.read(place)
        except EnvironmentProblem as error:
            if self._blobs.lost(place.blob):
                raise FormatError(
                    f"chunk {index} of {update.name} is lost", why="its blob is gone", fix=_FIX
                ) from error
            raise
        if leaf_hash(chunk) != update.leaf(index):
            raise FormatError(f"chunk {index} of {update.name} is not what was uploaded", fix=_FIX)
        return chunk
