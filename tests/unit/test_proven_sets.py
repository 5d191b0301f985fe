"""Chunks with proofs for many callers: the proofs are those of the whole tree, and memory stays bounded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cipherward.coordinator.blobs.blobs import Blobs
from cipherward.coordinator.blobs.writer import SegmentWriter
from cipherward.coordinator.daemon import proven
from cipherward.coordinator.daemon.proven import Proven, ProvenSets, read_all
from cipherward.coordinator.store.chunks import ChunkSet
from cipherward.crypto import merkle
from cipherward.crypto.merkle import leaf_hash


def stored(blobs: Blobs, name: str, count: int) -> tuple[ChunkSet, list[bytes]]:
    """A set of ``count`` chunks of different sizes in segments of seven."""
    chunks, made = [bytes([i % 256]) * (i + 1) for i in range(count)], ChunkSet(name)
    for first in range(0, count, 7):
        writer = SegmentWriter(blobs, first)
        for chunk in chunks[first : first + 7]:
            writer.add(chunk, leaf_hash(chunk))
        part = writer.flush()
        assert part is not None
        made = made.extended(part)
    return made, chunks


class Writer:
    """Stands for the store's thread: counts what is loaded."""

    def __init__(self, sets: dict[str, ChunkSet]) -> None:
        self.sets, self.loads = sets, 0
        self.chunks = self

    def load(self, name: str) -> ChunkSet:
        self.loads += 1
        return self.sets[name]

    async def transaction(self, function: Callable[[Any], Any]) -> Any:
        return function(self)


@pytest.mark.parametrize("count", [1, 2, 7, 8, 33])
def test_every_chunk_comes_with_the_proof_that_holds(tmp_path: Path, count: int) -> None:
    blobs = Blobs(f"file://{tmp_path}")
    found, chunks = stored(blobs, "s", count)
    one, root = Proven(found), merkle.root(found.leaves())
    assert one.count == count
    assert read_all(blobs, [one.place(index) for index in range(count)]) == chunks
    for index, chunk in enumerate(chunks):
        merkle.verify(leaf_hash(chunk), index, count, one.prove(index), root)
    for index in (-1, count):
        with pytest.raises(IndexError):
            one.place(index)
        with pytest.raises(IndexError):
            one.prove(index)


async def test_the_sets_used_last_are_kept_within_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = Blobs(f"file://{tmp_path}")
    sets = {name: stored(blobs, name, 16)[0] for name in "abc"}
    writer: Any = Writer(sets)
    size = Proven(sets["a"]).size
    assert size < 80 * 16
    monkeypatch.setattr(proven, "CACHE_BYTES", 2 * size)
    kept = ProvenSets()
    for name, loads in (("a", 1), ("b", 2), ("a", 2), ("c", 3), ("a", 3), ("b", 4)):
        await kept.get(name, writer)
        assert writer.loads == loads, name
