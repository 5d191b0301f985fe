"""Chunk sets of which many callers fetch single chunks with proofs: the shares of a dealer, the keys of an answer,
the chunks of an update. What proofs need is kept packed in memory, within a bound, so that the 1,000 members of
a round do not make the database read 1,000 lists of leaves 1,000 times."""

from __future__ import annotations

import asyncio
from array import array
from bisect import bisect_right
from collections import OrderedDict

from cipherward.coordinator.blobs.blobs import Blobs
from cipherward.coordinator.daemon.writer import Writer
from cipherward.coordinator.store.chunks import ChunkSet, Place
from cipherward.crypto.merkle import Tree
from cipherward.ids import Digest

CACHE_BYTES = 64 * 2**20
"""Enough for the shares of 1,000 sites: 64 bytes for each of 1,000,000."""


class Proven:
    """A complete chunk set: where its chunks lie, and their tree."""

    def __init__(self, stored: ChunkSet) -> None:
        self._firsts = [part.first for part in stored.segments]
        self._blobs = [part.blob for part in stored.segments]
        self._starts = array("I", (place.start for place in stored.places()))
        self._ends = array("I", (place.end for place in stored.places()))
        self._tree = Tree(stored.leaves())

    @property
    def count(self) -> int:
        """Chunks."""
        return self._tree.count

    @property
    def size(self) -> int:
        """Bytes that it takes in memory, nearly."""
        return self._tree.size + 8 * self.count

    def place(self, index: int) -> Place:
        """Where chunk ``index`` lies; raises IndexError."""
        if not 0 <= index < self.count:
            raise IndexError(index)
        blob = self._blobs[bisect_right(self._firsts, index) - 1]
        return Place(blob, self._starts[index], self._ends[index])

    def prove(self, index: int) -> list[Digest]:
        """The chunk's inclusion proof; raises IndexError."""
        return self._tree.prove(index)


class ProvenSets:
    """The sets used last. Only used from the event loop."""

    def __init__(self) -> None:
        self._sets: OrderedDict[str, Proven] = OrderedDict()
        self._bytes = 0

    async def get(self, name: str, writer: Writer) -> Proven:
        """The set of that name, which must be complete: it is not looked at again. IndexError if empty."""
        found = self._sets.get(name)
        if found is None:
            stored = await writer.transaction(lambda t: t.chunks.load(name))
            found = await asyncio.to_thread(Proven, stored)
            if name not in self._sets:
                self._bytes += found.size
                self._sets[name] = found
        self._sets.move_to_end(name)
        while self._bytes > CACHE_BYTES and len(self._sets) > 1:
            self._bytes -= self._sets.popitem(last=False)[1].size
        return found


def read_all(blobs: Blobs, places: list[Place]) -> list[bytes]:
    """The chunks at ``places``. Blocks; raises EnvironmentProblem."""
    return [blobs.read(place) for place in places]
