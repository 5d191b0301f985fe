"""A real coordinator in this process: its own event loop, database, blobs and port."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import structlog
from fuzz_mutate import frames
from fuzz_records import raw
from fuzz_target import CLOSING
from fuzz_world import Consortium, signing_key, tls_key

from cipherward.coordinator.api.dispatch import RPCS, Dispatcher
from cipherward.coordinator.daemon.service import Service, Settings
from cipherward.crypto.pki import member_files, tls
from cipherward.crypto.pki.armour import Kind, armour_signed
from cipherward.errors import CipherwardError, WireError, from_wire
from cipherward.proto.v1.common_pb2 import ErrorDetail

CALL_SECONDS = 20.0


class _Aborted(Exception):
    """What gRPC's ``abort`` raises."""


class _Context:
    """As much of gRPC's context as the dispatcher uses. Reads ``most`` replies and then hangs up."""

    def __init__(self, auth: dict[str, list[bytes]], most: int) -> None:
        self._auth, self._most = auth, most
        self.replies: list[bytes] = []
        self.refusal: CipherwardError | None = None

    def auth_context(self):
        return self._auth

    async def write(self, message) -> None:
        self.replies.append(message.SerializeToString())
        if len(self.replies) >= self._most:
            raise asyncio.CancelledError

    async def abort(self, status, details, trailing_metadata=()):
        detail = ErrorDetail.FromString(dict(trailing_metadata)["cw-error-bin"])
        self.refusal = from_wire(WireError(detail.code, detail.what, detail.why, detail.fix))
        raise _Aborted(details)


class _NoLimits:
    """Fuzzing calls more often than anybody may; that it may not is tested elsewhere."""

    @contextlib.contextmanager
    def admit(self, *_args) -> Iterator[None]:
        yield


class Coordinator:
    """The service, and how to call it."""

    def __init__(self) -> None:
        structlog.configure(processors=[_drop], cache_logger_on_first_use=False)
        base = Path("/dev/shm")
        self.folder = Path(
            tempfile.mkdtemp(prefix="cipherward-fuzz-hub-", dir=base if os.access(base, os.W_OK) else None)
        )
        with mock.patch("fuzz_world.NOW", time.time()):
            self.world = Consortium()
        self._write_folder()
        self.failures: list[BaseException] = []
        self.seeds: defaultdict[str, list[bytes]] = defaultdict(list)
        self._auth = {
            name: {
                "x509_pem_cert": [tls.to_pem(one.certificate)],
                "peer_spiffe_id": [str(one.identity).encode()],
            }
            for name, one in self.world.credentials.items()
        }
        self.loop = asyncio.new_event_loop()
        started: threading.Event = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        if not started.wait(30):
            raise RuntimeError("the coordinator did not start")
        CLOSING.append(self.close)

    def _write_folder(self) -> None:
        world, folder = self.world, self.folder
        member_files.write_file(folder / member_files.ANCHOR, world.anchor.to_text())
        request = armour_signed(Kind.REQUEST, world.requests["hub"])
        member_files.write_file(folder / member_files.REQUEST, request)
        member_files.write_secret(folder / member_files.SIGNING_KEY, signing_key("hub").to_bytes())
        member_files.write_secret(folder / member_files.TLS_KEY, tls.key_to_pem(tls_key("hub")))
        bundle = member_files.bundle(world.anchor, world.credentials["hub"], world.status)
        member_files.install_credential(folder, bundle, time.time())

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self.loop)
        made = Dispatcher.handlers

        def handlers(dispatcher, implemented):
            refuse = dispatcher._refuse

            async def watched(rpc, caller, error, context):
                if not isinstance(error, CipherwardError):
                    self.failures.append(error)
                await refuse(rpc, caller, error, context)

            dispatcher._refuse, dispatcher._limits = watched, _NoLimits()
            self._serve = {
                name: dispatcher._serve(name, method, implemented[name]) for name, method in RPCS.items()
            }
            return made(dispatcher, implemented)

        def ready(address: str) -> None:
            self.address = address
            started.set()

        with mock.patch.object(Dispatcher, "handlers", handlers):
            self.loop.run_until_complete(Service(Settings(self.folder, "127.0.0.1:0")).run(ready, self._stop))

    def close(self) -> None:
        """Stop it and leave nothing."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(15)
        self.loop.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def call(self, rpc: str, caller: str, messages: list[bytes], most: int = 64) -> list[bytes]:
        """One call with these raw messages; its replies. Raises what the caller is told, or what went wrong inside."""
        context = _Context(self._auth[caller], most)

        async def served() -> None:
            async def incoming():
                for one in messages:
                    yield one

            with contextlib.suppress(_Aborted, asyncio.CancelledError):
                await asyncio.wait_for(self._serve[rpc](incoming(), context), CALL_SECONDS)

        asyncio.run_coroutine_threadsafe(served(), self.loop).result(2 * CALL_SECONDS)
        if self.failures:
            raise self.failures.pop()
        refusal, replies = context.refusal, context.replies
        if refusal is None:
            return replies
        try:
            raise refusal
        finally:
            del refusal

    def ask(self, rpc: str, caller: str, *messages, seed: bool = True) -> list[bytes]:
        """A valid call, which the corpus keeps."""
        data = [raw(one) for one in messages]
        if seed:
            self.seeds[rpc].append(frames(data))
        return self.call(rpc, caller, data)


def _drop(_logger, _name, _event):
    raise structlog.DropEvent
