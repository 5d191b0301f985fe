"""A real coordinator in this process: its own event loop, database, blobs and port, with studies in every phase.
Targets give raw bytes to the dispatcher's handlers, as gRPC does once TLS has said who calls."""

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
from functools import cache
from itertools import islice
from pathlib import Path
from unittest import mock

import grpc
import structlog
from fuzz_mutate import Envelope, Mutator, frames, in_frames, unframed
from fuzz_records import raw
from fuzz_target import CLOSING, target
from fuzz_world import LENGTH, SITES, WEIGHTS, Consortium, sealing_key, signing_key, study, tls_key

from cipherward.coordinator.api.dispatch import RPCS, Dispatcher
from cipherward.coordinator.daemon.service import Service, Settings
from cipherward.crypto.labels import Label
from cipherward.crypto.manifest import verify_manifest
from cipherward.crypto.merkle import leaf_hash, root
from cipherward.crypto.pki import grpc_credentials, member_files, tls
from cipherward.crypto.pki.armour import Kind, armour_signed
from cipherward.crypto.quorum_records import (
    ENCRYPTED_VECTOR_BYTES,
    SEALED_KEY_BYTES,
    SEALED_SHARE_BYTES,
    sealed_root,
)
from cipherward.crypto.signing import record_digest
from cipherward.errors import CipherwardError, WireError, from_wire
from cipherward.proto.v1 import coordinator_pb2 as cp
from cipherward.proto.v1 import identity_pb2 as ip
from cipherward.proto.v1 import round_pb2 as rp
from cipherward.proto.v1 import study_pb2 as sp
from cipherward.proto.v1.common_pb2 import ErrorDetail, Signed
from cipherward.site_agent.daemon.relay import seal_item

COPIES = 2
"""Of each study: a mutation that is accepted moves its study on."""
CALL_SECONDS = 20.0
MODEL = b"\x07" * 32


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
        coordinator.cache_clear()
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


class Live:
    """A study at the coordinator, led to the phase it is wanted in; every request on the way is a seed."""

    def __init__(self, hub: Coordinator, parameters: str, name: str) -> None:
        self.hub, self.name = hub, name
        self.quorum = parameters.startswith("q")
        self.round = study(parameters)
        made = hub.world.manifest("quorum" if self.quorum else "shared-key", parameters, study=name)
        made.minimum_cohort = 4
        self.signed = hub.world.root.sign(Label.MANIFEST, made)
        self.trust = verify_manifest(self.signed, hub.world.anchor)
        self.bound = {"manifest_digest": self.trust.digest, "round": 1}

    def start_messages(self):
        order = self.order(sp.OperatorCommand.ACTION_START)
        content = WEIGHTS.tobytes()
        return [
            cp.StartStudyMessage(order=order, manifest=self.signed),
            cp.StartStudyMessage(weights=content[:5000]),
            cp.StartStudyMessage(weights=content[5000:]),
        ]

    def order(self, action):
        command = sp.OperatorCommand(
            action=action, manifest_digest=self.trust.digest, reason="so", issued_at=int(time.time())
        )
        world = self.hub.world
        signed = world.sign("olga", Label.OPERATOR_COMMAND, command)
        return sp.OperatorOrder(command=signed, credential=world.credentials["olga"].signed)

    def start(self):
        self.hub.ask("StartStudy", "olga", *self.start_messages())
        if not self.quorum:
            for receiver in SITES:
                self.hub.ask("PutRelay", "anna", *self.key_item(receiver))
        return self

    def key_item(self, receiver: str):
        return self._item(rp.RelayItem.KIND_SHARED_KEY, receiver, b"k" * 100, bytes(32), 0)

    def model_item(self, receiver: str):
        return self._item(rp.RelayItem.KIND_MODEL, receiver, WEIGHTS.tobytes(), MODEL, 1)

    def _item(self, kind, receiver, content, digest, number):
        return seal_item(
            self.trust,
            signing_key("anna"),
            str(self.hub.world.identities["anna"]),
            kind=kind,
            sender="anna",
            receiver=receiver,
            round_number=number,
            content=content,
            content_digest=digest,
        )

    def record(self, kind) -> Signed:
        request = cp.GetRecordRequest(study=self.name, round=1, kind=kind)
        end = time.monotonic() + 20
        while True:
            try:
                return Signed.FromString(self.hub.ask("GetRecord", "anna", request, seed=False)[0])
            except CipherwardError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.02)

    def post(self, rpc, name, label, message, kind=cp.PostRequest, *, send=True, **more):
        request = kind(study=self.name, record=self.hub.world.sign(name, label, message), **more)
        if send:
            self.hub.ask(rpc, name, request, seed=name == "anna")
        else:
            self.hub.seeds[rpc].append(frames([raw(request)]))

    def join(self, *, send=True):
        opened = record_digest(Label.ROUND_RECORD, self.record(cp.RECORD_KIND_ROUND))
        for name in SITES if send else SITES[:1]:
            join = rp.Join(
                **self.bound,
                round_record_digest=opened,
                site=name,
                round_key=sealing_key(f"{self.name} {name}").public() if self.quorum else b"",
                shared_key_digest=b"" if self.quorum else bytes(32),
                library=self.trust.params.library,
            )
            self.post("PostJoin", name, Label.JOIN, join, send=send)
        return self

    def plan(self):
        signed = self.record(cp.RECORD_KIND_PLAN)
        self.bound["plan_digest"] = record_digest(Label.PLAN_RECORD, signed)
        self.shares = {name: [os.urandom(SEALED_SHARE_BYTES) for _ in SITES] for name in SITES}
        return self

    def upload_messages(self, name, attempt=1):
        header = cp.UploadHeader(
            study=self.name, round=1, attempt=attempt, plan_digest=self.bound["plan_digest"]
        )
        messages = [cp.UploadMessage(header=header)]
        for index, chunk in enumerate(self.round.chunks[name]):
            messages.append(cp.UploadMessage(index=index, data=chunk, leaf_hash=leaf_hash(chunk)))
        for index, share in enumerate(self.shares[name] if self.quorum else []):
            messages.append(cp.UploadMessage(share=cp.ShareMessage(sealed=share, index=index)))
        return messages

    def upload(self):
        for name in SITES:
            self.hub.ask("Upload", name, *self.upload_messages(name), seed=name == "anna")
        return self

    def commit(self, *, send=True):
        for name in SITES if send else SITES[:1]:
            chunks = self.round.chunks[name]
            commit = rp.Commit(
                **self.bound,
                attempt=1,
                site=name,
                length=LENGTH,
                chunk_count=len(chunks),
                ciphertext_root=root([leaf_hash(one) for one in chunks]),
                share_root=sealed_root(self.shares[name]) if self.quorum else b"",
                ledger_sequence=1,
                ledger_head=bytes(32),
            )
            self.post("PostCommit", name, Label.COMMIT, commit, send=send)
        return self

    def acknowledge(self, *, send=True):
        attempts = [rp.Attempt(site=name, attempt=1) for name in SITES]
        for name in SITES if send else SITES[:1]:
            record = rp.Acknowledgement(**self.bound, site=name, opened=attempts)
            self.post("PostAcknowledgement", name, Label.ACKNOWLEDGEMENT, record, send=send)
        return self

    def close(self):
        self.close_digest = record_digest(Label.CLOSE_RECORD, self.record(cp.RECORD_KIND_CLOSE))
        return self

    def answer(self, *, send=True):
        for name in SITES if send else SITES[:1]:
            keys = [os.urandom(SEALED_KEY_BYTES) for _ in SITES]
            record = rp.Answer(
                **self.bound,
                close_digest=self.close_digest,
                site=name,
                encrypted_vector=os.urandom(ENCRYPTED_VECTOR_BYTES),
                key_root=sealed_root(keys),
            )
            self.post(
                "PostAnswer", name, Label.ANSWER, record, cp.PostAnswerRequest, send=send, sealed_keys=keys
            )
        return self

    def check_and_report(self):
        bound = {"manifest_digest": self.trust.digest, "round": 1, "close_digest": self.close_digest}
        if self.quorum:
            check = rp.SumCheck(**bound, site="anna", right=[0, 1])
            self.post("PostSumCheck", "anna", Label.SUM_CHECK, check)
        report = rp.ModelReport(**bound, site="anna", model_digest=MODEL)
        self.post("PostModelReport", "anna", Label.MODEL_REPORT, report)
        return self

    def questions(self):
        """All that a site can ask about a round."""
        seeds = self.hub.seeds
        for kind in range(6):
            seeds["GetRecord"].append(frames([raw(cp.GetRecordRequest(study=self.name, round=1, kind=kind))]))
        plain = frames([raw(cp.GetRecordRequest(study=self.name, round=1))])
        for rpc in ("GetShares", "GetAnswers", "GetSumChecks", "GetModelReports"):
            seeds[rpc].append(plain)
        seeds["GetSum"].append(frames([raw(cp.GetSumRequest(study=self.name, round=1, first_index=1))]))
        wanted = cp.GetUpdateChunksRequest(study=self.name, round=1, indices=[0, 1])
        seeds["GetUpdateChunks"].append(frames([raw(wanted)]))
        if "plan_digest" in self.bound:
            seeds["GetUploadState"].append(frames([raw(self.upload_messages("anna")[0].header)]))
        for kind in (1, 2):
            asked = cp.GetRelayRequest(study=self.name, kind=kind, sender="anna")
            seeds["GetRelay"].append(frames([raw(asked)]))
        seeds["RequestModel"].append(frames([raw(cp.RequestModelRequest(study=self.name, round=0))]))
        for rpc in ("GetManifest", "GetInitialWeights"):
            seeds[rpc].append(frames([raw(cp.GetManifestRequest(study=self.name, version=1))]))
        for rpc in ("GetStudyStatus", "WatchStudy"):
            seeds[rpc].append(frames([raw(cp.StudyStatusRequest(study=self.name))]))
        return self


@cache
def coordinator() -> Coordinator:
    """The one of this process, with studies in every phase."""
    hub = Coordinator()
    for copy in range(COPIES):
        for short, parameters in (("q", "q32"), ("s", "seal-4096-48")):

            def live(phase, short=short, parameters=parameters, copy=copy):
                return Live(hub, parameters, f"{phase}-{short}{copy}").start()

            live("open").join(send=False).questions()
            uploading = live("upload").join().plan().questions()
            hub.seeds["Upload"] += [
                frames([raw(one) for one in uploading.upload_messages("anna", attempt)]) for attempt in (1, 9)
            ]
            live("commit").join().plan().upload().commit(send=False)
            closed = live("done").join().plan().upload().commit()
            if short == "q":
                live("ack").join().plan().upload().commit().questions().acknowledge(send=False)
                closed.acknowledge()
                live("answer").join().plan().upload().commit().acknowledge().close().questions().answer(
                    send=False
                )
                closed.close().answer()
            closed.close().check_and_report().questions()
            wanted = frames([raw(cp.RequestModelRequest(study=closed.name, round=0))])
            hub.call("RequestModel", "bert", unframed(wanted))
            hub.seeds["PutRelay"].append(frames([raw(one) for one in closed.model_item("bert")]))
            # Only described, never started; and one that may be aborted.
            other = Live(hub, parameters, f"never-{short}{copy}")
            hub.seeds["StartStudy"].append(frames([raw(one) for one in other.start_messages()[:2]]))
            hub.seeds["AbortStudy"].append(
                frames([raw(live("abort").order(sp.OperatorCommand.ACTION_ABORT))])
            )
    hello = cp.HelloRequest(
        protocol=1, version="1", libraries=["tenseal 0.3.16"], status_list_number=1, now=1
    )
    for rpc, request in (("Hello", hello), ("GetStatusList", cp.GetStatusListRequest())):
        hub.seeds[rpc].append(frames([raw(request)]))
    hub.seeds["WatchWork"].append(frames([raw(cp.WatchWorkRequest())]))
    for rpc in RPCS:
        if rpc.startswith("Health."):
            hub.seeds[rpc] += [frames([b""]), frames([b"\x0a\x19cipherward.v1.Coordinator"])]
    return hub


_POSTED = {
    "PostJoin": (Label.JOIN, rp.Join),
    "PostCommit": (Label.COMMIT, rp.Commit),
    "PostAcknowledgement": (Label.ACKNOWLEDGEMENT, rp.Acknowledgement),
    "PostSumCheck": (Label.SUM_CHECK, rp.SumCheck),
    "PostModelReport": (Label.MODEL_REPORT, rp.ModelReport),
}
_BY_OPERATORS = {"StartStudy", "AbortStudy", "GetStudyStatus", "WatchStudy"}
_ENDLESS = {"WatchWork", "WatchStudy", "Health.Watch"}


def _rpc_targets(rpc, method):
    weight = 6 if rpc.startswith(("Post", "Upload", "Put", "Start")) else 3

    @target(f"rpc {rpc}", covers=[f"rpc {rpc}"], weight=weight, slow=True)
    def make():
        hub = coordinator()
        keys = dict(hub.world.keys)
        # Nobody else has the root's key: a manifest or credential that it did not sign stays a forgery here.
        del keys["root"]
        inside = {("OperatorOrder", "credential"): Envelope(Label.CREDENTIAL, ip.Credential)}
        inside["StartStudyMessage", "manifest"] = Envelope(Label.MANIFEST, sp.Manifest)
        if rpc in _POSTED:
            inside["PostRequest", "record"] = Envelope(*_POSTED[rpc])
        mutator = Mutator(keys, inside)
        caller = "olga" if rpc in _BY_OPERATORS else "anna"
        most = 1 if rpc in _ENDLESS else 64

        mutate = in_frames(lambda one, rng: mutator.message(one, method.input_type, rng))
        return lambda data: void(hub.call(rpc, caller, unframed(data), most)), hub.seeds[rpc], mutate


def void(_: object) -> None:
    """Only that it comes back."""


@target("rpc over mTLS", covers=["transport"], weight=6, slow=True)
def _transport():
    """The same by a real connection: the first byte says which RPC. Whatever comes, the service tells a site why it
    refuses, and knows the next call."""
    hub = coordinator()
    names = list(RPCS)
    pem = {name: tls.to_pem(hub.world.credentials[name].certificate) for name in ("anna", "olga")}
    channels = {
        name: grpc.secure_channel(
            hub.address,
            grpc_credentials.channel_credentials(
                key_pem=tls.key_to_pem(tls_key(name)),
                certificate_pem=pem[name],
                root_pem=hub.world.anchor.root_pem,
            ),
        )
        for name in pem
    }
    CLOSING.extend(channel.close for channel in channels.values())

    def run(data):
        name = names[(data[:1] or b"\x00")[0] % len(names)]
        method = RPCS[name]
        path = f"/{method.containing_service.full_name}/{method.name}"
        channel = channels["olga" if name in _BY_OPERATORS else "anna"]
        call = channel.stream_stream(path)(iter(unframed(data[1:])), timeout=CALL_SECONDS)
        try:
            for _ in islice(call, 1 if name in _ENDLESS else 64):
                pass
            call.cancel()
        except grpc.RpcError as error:
            told = [value for key, value in error.trailing_metadata() or () if key == "cw-error-bin"]
            if hub.failures:
                raise hub.failures.pop() from error
            if not told:
                raise ValueError(
                    f"{name} ended without a reason: {error.code()} {error.details()}"
                ) from error
            detail = ErrorDetail.FromString(told[0])
            raise from_wire(WireError(detail.code, detail.what, detail.why, detail.fix)) from error
        if hub.failures:
            raise hub.failures.pop()

    seeds = []
    for index, name in enumerate(names):
        seeds += [bytes([index]) + one for one in hub.seeds[name][:4]]

    def mutate(data, rng):
        head, rest = data[:1], data[1:]
        if not head or rng.random() < 0.1:
            head = bytes([rng.randrange(len(names))])
        kind = RPCS[names[head[0] % len(names)]].input_type
        mutator = Mutator(hub.world.keys)
        return head + in_frames(lambda one, other: mutator.message(one, kind, other))(rest, rng)

    return run, seeds, mutate


for _name, _method in RPCS.items():
    _rpc_targets(_name, _method)
