"""The sum of a round, fetched once: verified against the close record chunk by chunk, and kept on disk, since it
may be as large as the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cipherward.crypto import merkle
from cipherward.crypto.records import Closed
from cipherward.errors import EnvironmentProblem, FormatError, UnavailableError, VerificationError
from cipherward.site_agent.daemon.study import Study

STALL_CALLS = 5
"""Streams of the sum that may break without a new chunk before the round is tried again later."""


@dataclass(frozen=True, slots=True)
class StoredSum:
    """A sum that has the close record's root."""

    length: int
    """Values."""
    leaves: list[bytes]
    """Leaf hashes of its chunks (RFC 9162)."""
    chunks: Callable[[], Iterator[bytes]]
    """Reads them from disk."""


class Sums:
    """Fetches sums for one study."""

    def __init__(self, study: Study) -> None:
        self._study = study

    def get(self, round_number: int, closed: Closed) -> StoredSum:
        """The sum of the closed round, from disk if it was fetched before.

        Raises UnavailableError if the coordinator does not send it, ProtocolError if it has it no more,
        FormatError or VerificationError if it is not the one that the close record names.
        """
        trust = self._study.trust(round_number)
        params, length = trust.params, self._study.layout(trust).length
        count = params.chunk_count(length)
        if closed.record.sum_chunk_count != count:
            raise FormatError("the sum has another number of chunks than a model of this size")
        sizes = [params.sum_chunk_bytes(index, length) for index in range(count)]
        outbox = self._study.outbox(round_number)

        def read() -> Iterator[bytes]:
            return outbox.sum(sizes)

        try:
            leaves: list[bytes] = [merkle.leaf_hash(chunk) for chunk in read()]
        except EnvironmentProblem:
            leaves = []  # not fetched yet, or not to its end
        if not leaves or merkle.root(leaves) != closed.record.sum_root:
            leaves = list(outbox.put_sum(self._fetch(round_number, closed, sizes)))
            if merkle.root(leaves) != closed.record.sum_root:
                raise VerificationError("the sum is not the one that the close record names")
            for index, chunk in enumerate(read()):
                params.check_sum_chunk(chunk, index, length)
        return StoredSum(length, leaves, read)

    def _fetch(self, round_number: int, closed: Closed, sizes: list[int]) -> Iterator[bytes]:
        """The chunks, resumed where a stream breaks off."""
        index, stalled = 0, 0
        while index < closed.record.sum_chunk_count:
            before = index
            try:
                for chunk in self._study.client.sum_chunks(self._study.name, round_number, index):
                    if chunk.index != index or index == closed.record.sum_chunk_count:
                        raise FormatError("the sum's chunks come out of order")
                    if len(chunk.data) != sizes[index]:
                        raise FormatError(f"chunk {index} of the sum has {len(chunk.data)} bytes")
                    yield chunk.data
                    index += 1
            except UnavailableError:
                stalled = 0 if index > before else stalled + 1
                if stalled == STALL_CALLS:
                    raise
                continue
            if index == before:
                raise UnavailableError("the coordinator sends no chunks of the sum")
