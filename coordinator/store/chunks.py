"""Chunk sets: ordered chunks, stored in runs (segments) of about 2 MiB, one blob each.

A row per chunk would cost a transaction per chunk, and a blob cannot grow on an object store.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, CursorResult, Select, bindparam, delete, func, select

from cipherward.coordinator.store.schema import segments


@dataclass(frozen=True, slots=True)
class Segment:
    """Chunks ``first`` to ``first + len(sizes) - 1``, one behind the other in one blob."""

    first: int
    blob: str
    sizes: tuple[int, ...]
    leaves: tuple[bytes, ...]

    @property
    def end(self) -> int:
        """Index behind the last chunk."""
        return self.first + len(self.sizes)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a chunk lies: bytes ``start`` to ``end`` of a blob."""

    blob: str
    start: int
    end: int


class ChunkSet:
    """The stored part of an ordered set of chunks, from index 0 without a gap."""

    def __init__(self, name: str, parts: tuple[Segment, ...] = ()) -> None:
        self.name = name
        self.segments = parts
        self._firsts = [part.first for part in parts]

    @property
    def count(self) -> int:
        """Chunks stored."""
        return self.segments[-1].end if self.segments else 0

    def leaves(self) -> list[bytes]:
        """Leaf hashes of all chunks, in order."""
        return [leaf for part in self.segments for leaf in part.leaves]

    def _segment(self, index: int) -> Segment:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return self.segments[bisect_right(self._firsts, index) - 1]

    def leaf(self, index: int) -> bytes:
        """Leaf hash of chunk ``index``; raises IndexError."""
        part = self._segment(index)
        return part.leaves[index - part.first]

    def place(self, index: int) -> Place:
        """Where chunk ``index`` lies; raises IndexError."""
        part = self._segment(index)
        start = sum(part.sizes[: index - part.first])
        return Place(part.blob, start, start + part.sizes[index - part.first])

    def places(self, first: int = 0) -> Iterator[Place]:
        """Where the chunks from ``first`` on lie."""
        for part in self.segments:
            start = 0
            for index, size in enumerate(part.sizes, part.first):
                if index >= first:
                    yield Place(part.blob, start, start + size)
                start += size

    def extended(self, part: Segment) -> ChunkSet:
        """With one more segment at the end; raises ValueError for a gap."""
        if part.first != self.count:
            raise ValueError(f"segment {part.first} does not follow {self.count} chunks")
        return ChunkSet(self.name, (*self.segments, part))


# Made once: an upload asks and adds a few times, and making a statement takes longer than running it.
_COUNT = select(func.coalesce(func.sum(segments.c.count), 0)).where(segments.c.chunk_set == bindparam("name"))
_COUNTS = select(segments.c.chunk_set, func.sum(segments.c.count).label("stored")).group_by(
    segments.c.chunk_set
)
_NAMES = select(segments.c.chunk_set).distinct()
_RANGE = segments.c.chunk_set.between(bindparam("prefix"), bindparam("last"))
_COUNTS_IN_RANGE, _NAMES_IN_RANGE = _COUNTS.where(_RANGE), _NAMES.where(_RANGE)
_ADD = segments.insert()


class ChunkTable:
    """Segments, within a transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def load(self, name: str) -> ChunkSet:
        """The chunk set; empty if nothing is stored under that name."""
        rows = self._connection.execute(
            select(segments).where(segments.c.chunk_set == name).order_by(segments.c.first)
        )
        return ChunkSet(
            name,
            tuple(
                Segment(
                    row.first,
                    row.blob,
                    struct.unpack(f">{len(row.sizes) // 4}I", row.sizes),
                    tuple(row.leaves[32 * i : 32 * (i + 1)] for i in range(len(row.leaves) // 32)),
                )
                for row in rows
            ),
        )

    def count(self, name: str) -> int:
        """Chunks stored under that name."""
        return int(self._connection.execute(_COUNT, {"name": name}).scalar_one())

    def add(self, name: str, part: Segment) -> None:
        """Store one more segment; IntegrityError if there is one at that place."""
        row = {
            "chunk_set": name,
            "first": part.first,
            "count": len(part.sizes),
            "blob": part.blob,
            "sizes": struct.pack(f">{len(part.sizes)}I", *part.sizes),
            "leaves": b"".join(part.leaves),
        }
        self._connection.execute(_ADD, row)

    def counts(self, prefix: str) -> dict[str, int]:
        """Chunks stored, of each chunk set whose name begins so."""
        return {row.chunk_set: int(row.stored) for row in self._below(prefix, _COUNTS, _COUNTS_IN_RANGE)}

    def names(self, prefix: str) -> list[str]:
        """Chunk sets whose name begins so."""
        return [row.chunk_set for row in self._below(prefix, _NAMES, _NAMES_IN_RANGE)]

    def _below(self, prefix: str, statement: Select[Any], in_range: Select[Any]) -> CursorResult[Any]:
        if self._connection.dialect.name == "sqlite":
            # Where text is compared by its bytes, a range finds them by the index: with many rounds kept, and a
            # look at each upload, reading all names would cost seconds a round.
            return self._connection.execute(in_range, {"prefix": prefix, "last": f"{prefix}\U0010ffff"})
        return self._connection.execute(
            statement.where(segments.c.chunk_set.startswith(prefix, autoescape=True))
        )

    def drop(self, name: str) -> list[str]:
        """Forget a chunk set; returns its blobs, to be deleted after the transaction."""
        blobs = list(
            self._connection.execute(select(segments.c.blob).where(segments.c.chunk_set == name)).scalars()
        )
        self._connection.execute(delete(segments).where(segments.c.chunk_set == name))
        return blobs

    def blobs(self) -> set[str]:
        """All blobs in use."""
        return set(self._connection.execute(select(segments.c.blob)).scalars())
