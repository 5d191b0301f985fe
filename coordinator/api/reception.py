"""One upload on its way in: messages are taken as they come, and stored in the meantime."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from types import TracebackType
from typing import Self

from cipherward.coordinator.api.limits import Incoming
from cipherward.coordinator.api.staging import ChunkStage, ShareStage, Stage
from cipherward.coordinator.store.chunks import Segment
from cipherward.errors import FormatError, LimitError, UnavailableError
from cipherward.proto.v1.coordinator_pb2 import UploadMessage

Record = Callable[[Sequence[tuple[Stage, Segment]]], Awaitable[None]]
"""Write down what lies on disk."""


class Reception:
    """Takes an upload's messages until its end, and no more than is wanted at a time.

    While one part is being stored the next one is received: memory holds two at most.
    """

    def __init__(
        self,
        messages: Incoming[UploadMessage],
        chunks: ChunkStage,
        shares: ShareStage,
        record: Record,
        stop: asyncio.Event,
        threads: Executor,
    ) -> None:
        """``threads`` check and write."""
        self._threads = threads
        self._messages, self._chunks, self._shares, self._record = messages, chunks, shares, record
        self._stop, self._most = stop, 0
        self._stage: Stage = chunks
        self._news, self._room = asyncio.Event(), asyncio.Event()
        self._storing, self._failed = asyncio.Lock(), False

    async def __aenter__(self) -> Self:
        self._pump = asyncio.create_task(self._take())
        self._stopping = asyncio.create_task(self._stop.wait())
        for task in (self._pump, self._stopping):
            task.add_done_callback(lambda _: self._news.set())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in (self._pump, self._stopping):
            task.cancel()
        for stage in (self._chunks, self._shares):  # no more is taken
            stage.drop(stage.cut())
        await asyncio.gather(self._pump, self._stopping, return_exceptions=True)

    async def run(self, most: int, seconds: float, contended: Callable[[], bool]) -> bool:
        """Store whenever ``most`` bytes have come, to the end of the upload: then True.

        False if that took longer than ``seconds`` while it was ``contended``; all that came whole is then stored.
        Raises FormatError or ProtocolError for a wrong message, what the messages raise, UnavailableError when
        told to stop, EnvironmentProblem, and what ``record`` raises.
        """
        self._most = most
        self._room.set()
        try:
            return await self._run(seconds, contended)
        except (UnavailableError, LimitError, asyncio.CancelledError):
            await self._store()  # what came whole need not come again
            raise

    async def _run(self, seconds: float, contended: Callable[[], bool]) -> bool:
        while True:
            if not await self._waited(seconds):
                if not contended():
                    continue
                self._most = 0
                self._room.clear()  # who waits for a place holds one message
                await self._store()
                return False
            if self._stopping.done():
                raise UnavailableError(
                    "the upload was cut off", why="a newer upload of the site began", fix="Resume it"
                )
            if self._pump.done():
                self._pump.result()
                await self._store()
                return True
            await self._store()

    async def _waited(self, seconds: float) -> bool:
        """Whether there is something to be done within that time."""
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            return False
        self._news.clear()
        return True

    async def _take(self) -> None:
        chunks, shares = self._chunks, self._shares
        await self._room.wait()
        async for message in self._messages:
            if message.HasField("header"):
                raise FormatError("an upload has one header")
            await self._room.wait()
            if self._stage is chunks and message.HasField("share"):
                shares.require_begin(chunks)
                self._stage = shares
            self._stage.take(message)
            if self._stage.waiting >= self._most:
                self._room.clear()
                self._news.set()

    async def _store(self) -> None:
        # A caller that hangs up must not come between a segment and its record: what is written and what is
        # recorded could then differ.
        await asyncio.shield(self._write_and_record())

    async def _write_and_record(self) -> None:
        async with self._storing:
            runs = [
                (stage, run) for stage in (self._chunks, self._shares) if (run := stage.cut()) is not None
            ]
            if self._most:
                self._room.set()
            if not runs:
                return

            def write() -> list[tuple[Stage, Segment]]:
                written: list[tuple[Stage, Segment]] = []
                try:
                    checked = [(stage, run, stage.check(run)) for stage, run in runs]
                    for stage, run, leaves in checked:
                        written.append((stage, stage.write(run, leaves)))
                except BaseException:
                    for one, segment in written:
                        one.erase(segment)
                    raise
                else:
                    return written
                finally:
                    for stage, run in runs:
                        stage.drop(run)

            if self._failed:  # this would not follow what is stored
                for stage, run in runs:
                    stage.drop(run)
                return
            self._failed = True
            await self._record(await asyncio.get_running_loop().run_in_executor(self._threads, write))
            self._failed = False
