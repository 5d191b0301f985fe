"""Whether the kept ciphertexts of a round are what was signed: each update has the root that its site committed,
and the sum is the sum of the updates in U, chunk by chunk.

Memory holds ``BUFFER_BYTES`` of ciphertexts, however many there are, and 36 bytes for each chunk kept of the round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from cipherward.coordinator.audit.source import KeptSet, RoundLook, Source
from cipherward.crypto import merkle
from cipherward.crypto.history import Finding, Found, VerifiedRound, located
from cipherward.crypto.records import Closed
from cipherward.crypto.suites.base import ChunkAdder
from cipherward.errors import VerificationError

BUFFER_BYTES = 64 * 2**20

Progress = Callable[[int, int], None]
"""Called with the bytes read of the round so far, and all that are to be read."""


@dataclass(frozen=True, slots=True)
class _Update:
    site: str
    kept: KeptSet
    root: bytes


@dataclass(frozen=True, slots=True)
class Checked:
    """What was there to be checked of a round."""

    updates: bool
    """Every update in U (of a round in progress: every committed one that is stored)."""
    total: bool
    """The sum's chunks have the root in the close record."""
    added: bool
    """The sum was recomputed."""


class Ciphertexts:
    """Those of one verified round."""

    def __init__(self, source: Source, look: RoundLook, verified: VerifiedRound, length: int) -> None:
        """``length``: values in an update."""
        self._source, self._look, self._verified, self._length = source, look, verified, length
        self._study, self._number = verified.trust.manifest.study, verified.number
        self._params = verified.trust.params
        self._closed = verified.ending if isinstance(verified.ending, Closed) else None

    def check(self, adder: Callable[[], ChunkAdder] | None, progress: Progress) -> Checked:
        """Check all that is kept. ``adder``: None if sums are not to be added up.

        Raises Found for the first thing that is wrong, Gone if the round was thrown away meanwhile,
        UnavailableError if the adder's process fails.
        """
        updates, total = self._updates(), self._look.total
        for one in updates:
            self._check_leaves(one.kept, one.root, one.site, self._params.upload_chunk_bytes)
        if self._closed is not None and total.count:
            self._check_leaves(total, self._closed.record.sum_root, "", self._params.sum_chunk_bytes)
        kept_total = total if self._closed is not None and total.count else None
        add = adder if updates and kept_total is not None else None
        self._check_chunks(updates, kept_total, add, progress)
        return Checked(bool(updates), kept_total is not None, add is not None)

    def _updates(self) -> list[_Update]:
        """The committed updates that are kept; all of U, or none."""
        verified, stored = self._verified, self._look.updates
        if self._closed is None:
            return [
                _Update(site, stored[site, commit.attempt], commit.ciphertext_root)
                for site, commit in verified.commits.items()
                if (site, commit.attempt) in stored
            ]
        wanted = [
            (item.site, item.attempt, item.ciphertext_root) for item in self._closed.record.contributions
        ]
        missing = [site for site, attempt, _ in wanted if (site, attempt) not in stored]
        if len(missing) == len(wanted):
            return []
        if missing:
            self._wrong("its update is not stored, and others of the round are", missing[0])
        return [_Update(site, stored[site, attempt], root) for site, attempt, root in wanted]

    def _wrong(self, what: str, site: str = "", chunk: int | None = None) -> None:
        raise Found(Finding(what, self._study, self._number, site, chunk))

    def _check_leaves(
        self, kept: KeptSet, root: bytes, site: str, size_of: Callable[[int, int], int]
    ) -> None:
        """Whether the leaf hashes in the store are those that were signed for."""
        what = "its update" if site else "the sum"
        count, growing = self._params.chunk_count(self._length), merkle.Growing()
        for index, size, leaf in kept.described():
            if index != growing.count:
                self._wrong(f"{what} lacks this chunk", site, growing.count)
            if index >= count or size != size_of(index, self._length):
                self._wrong(f"{what} has a chunk of {size} bytes there", site, index)
            growing.add(leaf)
        if growing.count != count:
            self._wrong(f"{what} lacks this chunk", site, growing.count)
        if growing.root != root:
            signed = "that it committed" if site else "in the close record"
            self._wrong(f"the stored digests of {what} do not have the root {signed}", site)

    def _check_chunks(
        self,
        updates: Sequence[_Update],
        total: KeptSet | None,
        adder: Callable[[], ChunkAdder] | None,
        progress: Progress,
    ) -> None:
        sets = [*(one.kept for one in updates), *([total] if total else [])]
        ahead = BUFFER_BYTES // max(1, len(sets))
        everything, done = sum(one.size for one in sets), 0
        streams = [(one.site, self._stream(one.kept, one.site, ahead)) for one in updates]
        sums = self._stream(total, "", ahead) if total else iter(())
        opened: AbstractContextManager[ChunkAdder | None] = adder() if adder else nullcontext()
        with opened as adding:
            for index in range(self._params.chunk_count(self._length)):
                reading = _Reading(streams)
                if adding is not None:
                    added = self._add(adding, reading, index)
                else:
                    for _ in reading:
                        pass
                chunk = next(sums, b"")
                if adding is not None and added != chunk:
                    self._wrong("the sum's chunk is not the sum of the updates", chunk=index)
                done += reading.bytes + len(chunk)
                progress(done, everything)

    def _add(self, adding: ChunkAdder, reading: _Reading, index: int) -> bytes:
        try:
            return adding.add(reading, index, self._length)
        except VerificationError:  # the bytes are those that were committed, and no ciphertext
            with located(self._study, self._number, reading.site, index):
                raise

    def _stream(self, kept: KeptSet, site: str, ahead: int) -> Iterator[bytes]:
        """The chunks from the blobs, each with the digest in the store. Raises Found, or Gone."""
        chunks, what = self._source.chunks(kept, ahead), "its update" if site else "the sum"
        for index, _, leaf in kept.described():
            with located(self._study, self._number, site, index):
                chunk = next(chunks)
            if merkle.leaf_hash(chunk) != leaf:
                self._wrong(f"the stored chunk of {what} is not the one that was signed for", site, index)
            yield chunk


class _Reading:
    """The same chunk of every update, in order. Knows whose was the last."""

    def __init__(self, streams: Sequence[tuple[str, Iterator[bytes]]]) -> None:
        self._streams = streams
        self.site, self.bytes = "", 0

    def __iter__(self) -> Iterator[bytes]:
        for site, stream in self._streams:
            self.site = site
            chunk = next(stream)
            self.bytes += len(chunk)
            yield chunk
