"""The engine on this machine: one worker process of the suite does the native part."""

from __future__ import annotations

from collections.abc import Callable

from cipherward.coordinator.aggregation.base import Stopped, SumJob
from cipherward.coordinator.blobs.blobs import Blobs
from cipherward.coordinator.blobs.writer import SegmentWriter
from cipherward.coordinator.store.chunks import ChunkSet, Segment
from cipherward.crypto.merkle import leaf_hash


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
                chunks = (self._blobs.read(update.place(index)) for update in job.updates)
                chunk = adder.add(chunks, index, job.length)
                writer.add(chunk, leaf_hash(chunk))
                if writer.full:
                    total = flush(total)
            return flush(total)
