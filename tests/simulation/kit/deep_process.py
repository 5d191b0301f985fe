"""The real coordinator without its gRPC server: handlers, studies, sums, store and blobs, in an event loop of its own.
It can be killed around any of its transactions, after which none of its parts writes or deletes anything any more, and
put up again on the same disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from google.protobuf.message_factory import GetMessageClass

from cipherward.clock import ManualClock
from cipherward.coordinator.aggregation.local import LocalEngine
from cipherward.coordinator.api.dispatch import SERVICE, Call
from cipherward.coordinator.api.errors import detail_of
from cipherward.coordinator.api.inspection import Inspection
from cipherward.coordinator.api.inspection_worker import MEMORY, Inspector
from cipherward.coordinator.api.limits import Incoming
from cipherward.coordinator.api.policy import POLICIES
from cipherward.coordinator.api.service import implementation
from cipherward.coordinator.blobs.blobs import Blobs
from cipherward.coordinator.daemon.core import Core
from cipherward.coordinator.daemon.metrics import Metrics
from cipherward.coordinator.daemon.presence import Presence
from cipherward.coordinator.daemon.studies import Studies
from cipherward.coordinator.daemon.sums import Sums
from cipherward.coordinator.daemon.traffic import Traffic
from cipherward.coordinator.daemon.watching import Watching
from cipherward.coordinator.daemon.writer import Writer
from cipherward.coordinator.store.database import Store, Transaction
from cipherward.crypto.pki.peers import Peer
from cipherward.errors import CipherwardError
from cipherward.site_agent.client.errors import _from_detail


class Killed(BaseException):
    """kill -9: nobody catches it."""


class Boot:
    """One boot's clocks: the wall clock of all, monotonic seconds since some moment."""

    def __init__(self, clock: ManualClock, since: float) -> None:
        self._clock, self._since = clock, since

    def now(self) -> float:
        return self._clock.now()

    def monotonic(self) -> float:
        return self._clock.monotonic() - self._since


class MortalStore(Store):
    """``at_transaction()`` says "before" or "after" when the process is to die at this one."""

    def __init__(self, url: str, process: Process) -> None:
        self._process = process
        super().__init__(url)

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        self._process.require_alive()
        with super().transaction() as t:
            yield t
            due = self._process.at_transaction()
            if due == "before":
                self._process.die()
        if due == "after":
            self._process.die()


class MortalBlobs(Blobs):
    """Nothing is put or deleted by a process that is dead."""

    def __init__(self, url: str, process: Process) -> None:
        self._process = process
        super().__init__(url)

    def put(self, parts: Any) -> str:
        self._process.require_alive()
        return super().put(parts)

    def delete(self, names: Any) -> None:
        self._process.require_alive()
        super().delete(names)


class Inspecting(Inspection):
    """The same checks on the same memory, in this process: the simulation's suite is known here only, and to start
    another process takes longer than a hundred operations."""

    def __init__(self) -> None:
        super().__init__()
        inspector = Inspector()
        inspector.memory(MEMORY.pack(self.buffers.fd, self.buffers.bytes))

        def request(operation: str, body: bytes, doing: str) -> bytes:
            return getattr(inspector, operation)(body)

        self._worker.request = request
        self.threads.shutdown()
        self.threads = None  # the loop's own, which ends with a simulated process


_INSPECTION = Inspecting()
"""One for all: it keeps nothing of what it was asked."""


class Process:
    """From its start to its death."""

    def __init__(
        self, folder: Path, member: Any, clock: ManualClock, since: float, at_transaction: Callable[[], str]
    ) -> None:
        self.at_transaction: Callable[[], str] = lambda: ""
        self._dead, self._loop = False, asyncio.new_event_loop()
        boot = Boot(clock, since)
        self._store = MortalStore(f"sqlite:///{folder / 'coordinator.db'}", self)
        blobs, self._writer = MortalBlobs(f"file://{folder / 'blobs'}", self), Writer(self._store)
        self.studies = Studies(member, self._store, blobs, self._writer, boot)
        self.core = Core(
            member,
            boot,
            blobs,
            self._writer,
            self.studies,
            Watching(self.studies, boot),
            Presence(boot),
            Traffic(self._writer),
            Metrics(),
            _INSPECTION,
        )
        self._sums = Sums(self.studies, self._store, self._writer, LocalEngine(blobs))
        self._handlers = implementation(self.core)
        self.at_transaction = at_transaction
        self.run(self.studies.load())

    def require_alive(self) -> None:
        if self._dead:
            raise Killed

    def die(self) -> None:
        self._dead = True
        raise Killed

    def run(self, work: Any) -> Any:
        """``work`` and the sums that it starts, to their end. Raises Killed."""

        async def all_of_it() -> Any:
            result = await work
            while left := [task for task in self._sums._tasks.values() if not task.done()]:
                await asyncio.wait(left)
            for task in self._sums._tasks.values():
                if not task.cancelled() and task.exception() is not None:
                    raise task.exception()
            return result

        try:
            return self._loop.run_until_complete(all_of_it())
        finally:
            if self._dead:
                self.bury()

    def bury(self) -> None:
        """What the operating system does with a process that was killed."""
        self._dead = True
        if self._loop.is_closed():
            return
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        for task in self._sums._tasks.values():
            task.cancelled() or task.exception()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()
        self._writer.close()

    def rows(self, read: Callable[[Transaction], Any]) -> Any:
        """What is in the store now."""
        with Store.transaction(self._store) as t:
            return read(t)

    # Calls

    def call(self, rpc: str, peer: Peer, request: Any) -> Any:
        """One call over an ideal link; the reply, or the replies of a stream. Raises what a client would, and
        Killed."""
        method, handler = SERVICE.methods_by_name[rpc], self._handlers[rpc]
        sent = [one.SerializeToString() for one in (request if method.client_streaming else [request])]
        parse, call = GetMessageClass(method.input_type).FromString, Call(rpc, peer)

        async def messages() -> AsyncIterator[bytes]:
            for message in sent:
                yield message

        async def handled() -> Any:
            incoming = Incoming(messages(), parse, rpc, POLICIES[rpc], lambda: None)
            work = handler(call, incoming if method.client_streaming else await incoming.only())
            return [reply async for reply in work] if method.server_streaming else await work

        try:
            return self.run(handled())
        except CipherwardError as error:
            raise _from_detail(detail_of(error).SerializeToString()) from error
