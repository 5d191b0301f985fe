"""Bytes to and from sites, by round. Counted in memory, added to the store now and then and at the end."""

from __future__ import annotations

from collections import defaultdict

from google.protobuf.message import Message

from cipherward.coordinator.daemon.writer import Writer
from cipherward.coordinator.store.database import Transaction
from cipherward.crypto.manifest_rules import MAX_ROUNDS

FRAME_BYTES = 5
"""gRPC's prefix of each message: compressed flag and length."""


class Traffic:
    """Counts messages of rounds."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._pending: defaultdict[tuple[str, int], list[int]] = defaultdict(lambda: [0, 0])

    def up(self, study: str, round_number: int, message: Message) -> None:
        """A site sent it."""
        self._of(study, round_number)[0] += message.ByteSize() + FRAME_BYTES

    def up_bytes(self, study: str, round_number: int, size: int, messages: int) -> None:
        """A site sent so many messages of ``size`` bytes together."""
        self._of(study, round_number)[0] += size + messages * FRAME_BYTES

    def down(self, study: str, round_number: int, message: Message) -> None:
        """A site is being sent it."""
        self._of(study, round_number)[1] += message.ByteSize() + FRAME_BYTES

    def _of(self, study: str, round_number: int) -> list[int]:
        # The number may be any that a caller wrote: one that no round has is counted nowhere.
        return self._pending[study, round_number] if round_number <= MAX_ROUNDS else [0, 0]

    def pending(self, study: str, round_number: int) -> tuple[int, int]:
        """Bytes (up, down) not yet in the store."""
        up, down = self._pending.get((study, round_number), (0, 0))
        return up, down

    async def flush(self) -> None:
        """Add what was counted to the store. If it fails, the counts are kept."""
        if not self._pending:
            return
        counted = dict(self._pending)
        self._pending.clear()

        def add(t: Transaction) -> None:
            for (study, number), (up, down) in counted.items():
                t.studies.add_traffic(study, number, up, down)

        try:
            await self._writer.transaction(add)
        except BaseException:
            for key, (up, down) in counted.items():
                self._pending[key][0] += up
                self._pending[key][1] += down
            raise
