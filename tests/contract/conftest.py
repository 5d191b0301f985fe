"""A consortium in a folder, a coordinator on loopback, and sites that speak to it over mTLS."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest

from cipherward.coordinator.api.service import OPTIONS
from cipherward.coordinator.daemon.service import Service, Settings
from cipherward.crypto.labels import Label
from cipherward.crypto.merkle import leaf_hash, root
from cipherward.crypto.pki import member_files
from cipherward.crypto.pki.issuing import issue_credential, issue_status_list
from cipherward.crypto.pki.root_key import RootKey
from cipherward.crypto.pki.site_keys import ensure_sealing_key
from cipherward.crypto.pki.store import load_member
from cipherward.crypto.records import StudyTrust
from cipherward.crypto.signing import record_digest
from cipherward.crypto.suites.payload import Layout
from cipherward.crypto.suites.registry import suite
from cipherward.crypto.suites.site_side import site_side
from cipherward.crypto.transcript import model_digest
from cipherward.errors import CipherwardError, WireError, from_wire
from cipherward.ids import Identity, Role
from cipherward.proto.v1 import coordinator_pb2 as pb
from cipherward.proto.v1 import round_pb2, study_pb2
from cipherward.proto.v1.common_pb2 import ErrorDetail, Signed
from cipherward.proto.v1.coordinator_pb2_grpc import CoordinatorStub
from cipherward.proto.v1.identity_pb2 import Revocation

sys.path.insert(0, str(Path(__file__).parent / "kit"))

from kit_postgresql import PrivatePostgresql, in_memory, private_postgresql

PARAMETERS = 150_000
SET, BOUND = "seal-4096-48", 4.0
KEY_DIGEST = b"\x05" * 32


class Consortium:
    """The admin's machine and everybody's folders, in one temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = RootKey.generate()
        self.anchor = self.root.make_anchor("heart", time.time())
        self.status = issue_status_list(self.root, self.anchor, number=1, revoked=[], now=time.time())

    def member(self, role: Role, name: str) -> Any:
        folder = self.folder / f"{role.value}-{name}"
        identity = Identity.make("heart", role, name)
        options: dict[str, Any] = {}
        if role is Role.SITE:
            options["sealing_key"] = lambda: ensure_sealing_key(folder)
        if role is Role.COORDINATOR:
            options["hosts"] = ["127.0.0.1", "localhost"]
        request = member_files.create_member(folder, identity, self.anchor, now=time.time(), **options)
        credential = issue_credential(self.root, self.anchor, request, days=30, now=time.time())
        bundle = member_files.bundle(self.anchor, credential, self.status)
        member_files.install_credential(folder, bundle, time.time())
        return load_member(folder, role, time.time())

    def revoke(self, member: Any, number: int = 2) -> Signed:
        revoked = [
            Revocation(
                serial=member.credential.serial, identity=str(member.identity), reason="left", revoked_at=1
            )
        ]
        return issue_status_list(
            self.root, self.anchor, number=number, revoked=revoked, now=time.time()
        ).signed

    def manifest(
        self, sites: list[Any], coordinator: Any, weights: np.ndarray, **changes: Any
    ) -> tuple[Signed, StudyTrust]:
        """A signed manifest; ``changes`` replace its fields."""
        params = suite("shared-key").parameters(SET, BOUND)
        fields: dict[str, Any] = {
            "consortium": "heart",
            "study": "trial",
            "version": 1,
            "first_round": 1,
            "roster": [
                study_pb2.RosterSite(
                    name=site.identity.name,
                    signing_key=site.credential.signing_key,
                    sealing_key=site.credential.sealing_key,
                    tls_key_digest=site.credential.tls_key_digest,
                    weight=1.0,
                    batch_divisor=8.0,
                )
                for site in sites
            ],
            "coordinator": study_pb2.CoordinatorEntry(
                name=coordinator.identity.name,
                signing_key=coordinator.credential.signing_key,
                tls_key_digest=coordinator.credential.tls_key_digest,
            ),
            "task": study_pb2.TaskEntry(name="heart-disease", code_digest=b"\x01" * 32),
            "initial_weights_digest": model_digest(weights),
            "parameter_count": weights.size,
            "rounds": 2,
            "strategy": study_pb2.Strategy(name="fedavg", server_learning_rate=1.0),
            "suite": study_pb2.SuiteEntry(
                name="shared-key",
                parameters=SET,
                library=params.library,
                bound=BOUND,
                key_maker=sites[0].identity.name,
            ),
            "dp_disabled": True,
            "plain": study_pb2.PlainTraining(
                steps=1,
                learning_rate=0.1,
                sampling_rate=0.5,
                metrics=study_pb2.MetricsPolicy(loss_bound=1.0, scale=1.0),
            ),
            "minimum_cohort": 2,
            "deadlines": study_pb2.Deadlines(join_window=60, upload=60, verify=60),
            "release_to": "sites",
            "signed_at": int(time.time()),
        }
        manifest = study_pb2.Manifest(**{**fields, **changes})
        signed = self.root.sign(Label.MANIFEST, manifest)
        return signed, StudyTrust(manifest, record_digest(Label.MANIFEST, signed))


class Caller:
    """A member with a channel to the coordinator."""

    def __init__(self, member: Any, address: str) -> None:
        self.member, self.name = member, member.identity.name
        self.channel = grpc.aio.secure_channel(
            address,
            member.channel_credentials(),
            options=[*OPTIONS[:2], ("grpc.use_local_subchannel_pool", 1)],
        )
        self.stub: Any = CoordinatorStub(self.channel)
        # gRPC's asyncio client loses the status of a stream that the server refuses half-way; this one does not.
        self._blocking: Any = CoordinatorStub(
            grpc.secure_channel(address, member.channel_credentials(), options=[*OPTIONS[:2]])
        )

    async def send(self, rpc: str, messages: Any) -> Any:
        """A call that streams ``messages``."""
        return await asyncio.to_thread(lambda: getattr(self._blocking, rpc)(iter(messages), timeout=30))

    def sign(self, label: Label, message: Any) -> Signed:
        return self.member.signing_key.sign(label, message, str(self.member.identity))


class Site(Caller):
    """Does what a site agent does, on command, with contributions made up by the test."""

    def __init__(self, member: Any, address: str, trust: StudyTrust) -> None:
        super().__init__(member, address)
        self.trust = trust
        self.length = Layout(trust.manifest.parameter_count, 3).length

    @property
    def study(self) -> str:
        return self.trust.manifest.study

    async def snapshot(self) -> pb.StudySnapshot:
        return await self.until(lambda _: True)

    async def until(self, reached: Callable[[pb.StudySnapshot], bool], seconds: float = 15) -> Any:
        async def watch() -> Any:
            stream = self.stub.WatchWork(pb.WatchWorkRequest())
            try:
                async for one in stream:
                    if reached(one):
                        return one
                raise AssertionError("the watch stream ended")
            finally:
                stream.cancel()

        return await asyncio.wait_for(watch(), seconds)

    def key_item(self, receiver: str, content: bytes = b"sealed", **changes: Any) -> list[pb.RelayMessage]:
        item = round_pb2.RelayItem(
            kind=round_pb2.RelayItem.KIND_SHARED_KEY,
            manifest_digest=self.trust.digest,
            sender=self.name,
            receiver=receiver,
            content_digest=KEY_DIGEST,
            sealed_key=os.urandom(64),
            content_length=len(content),
            body_root=root([leaf_hash(content)]),
            chunk_count=1,
        )
        for field, value in changes.items():
            setattr(item, field, value)
        return [
            pb.RelayMessage(study=self.study, item=self.sign(Label.RELAY, item)),
            pb.RelayMessage(study=self.study, index=0, data=content),
        ]

    async def put_relay(self, messages: list[pb.RelayMessage]) -> None:
        await self.send("PutRelay", messages)

    async def join_record(self, number: int, **changes: Any) -> Signed:
        opened = await self.record(number, pb.RECORD_KIND_ROUND)
        join = round_pb2.Join(
            manifest_digest=self.trust.digest,
            round_record_digest=record_digest(Label.ROUND_RECORD, opened),
            round=number,
            site=self.name,
            shared_key_digest=KEY_DIGEST,
            library=self.trust.manifest.suite.library,
        )
        for field, value in changes.items():
            setattr(join, field, value)
        return self.sign(Label.JOIN, join)

    async def record(self, number: int, kind: Any) -> Signed:
        return await self.stub.GetRecord(pb.GetRecordRequest(study=self.study, round=number, kind=kind))

    async def join(self, number: int) -> None:
        record = await self.join_record(number)
        await self.stub.PostJoin(pb.PostRequest(study=self.study, record=record))

    async def header(self, number: int, attempt: int = 1) -> pb.UploadHeader:
        plan = await self.record(number, pb.RECORD_KIND_PLAN)
        digest = record_digest(Label.PLAN_RECORD, plan)
        return pb.UploadHeader(study=self.study, round=number, attempt=attempt, plan_digest=digest)

    @staticmethod
    def messages(header: pb.UploadHeader, chunks: list[bytes], first: int = 0) -> Iterator[pb.UploadMessage]:
        yield pb.UploadMessage(header=header)
        for index in range(first, len(chunks)):
            yield pb.UploadMessage(index=index, data=chunks[index], leaf_hash=leaf_hash(chunks[index]))

    async def upload(self, number: int, chunks: list[bytes], attempt: int = 1) -> int:
        header = await self.header(number, attempt)
        return (await self.send("Upload", self.messages(header, chunks))).chunks_stored

    async def commit_record(self, number: int, chunks: list[bytes], **changes: Any) -> Signed:
        header = await self.header(number)
        commit = round_pb2.Commit(
            manifest_digest=self.trust.digest,
            plan_digest=header.plan_digest,
            round=number,
            attempt=1,
            site=self.name,
            length=self.length,
            chunk_count=len(chunks),
            ciphertext_root=root([leaf_hash(chunk) for chunk in chunks]),
            ledger_sequence=number,
            ledger_head=b"\x02" * 32,
        )
        for field, value in changes.items():
            setattr(commit, field, value)
        return self.sign(Label.COMMIT, commit)

    async def commit(self, number: int, chunks: list[bytes], **changes: Any) -> Signed:
        record = await self.commit_record(number, chunks, **changes)
        await self.stub.PostCommit(pb.PostRequest(study=self.study, record=record))
        return record

    async def contribute(self, number: int, chunks: list[bytes]) -> None:
        assert await self.upload(number, chunks) == len(chunks)
        await self.commit(number, chunks)

    async def fetch_sum(self, number: int, first: int = 0) -> list[bytes]:
        request = pb.GetSumRequest(study=self.study, round=number, first_index=first)
        return [chunk.data async for chunk in self.stub.GetSum(request)]

    async def report(self, number: int, model: bytes) -> None:
        closed = await self.record(number, pb.RECORD_KIND_CLOSE)
        report = round_pb2.ModelReport(
            manifest_digest=self.trust.digest,
            close_digest=record_digest(Label.CLOSE_RECORD, closed),
            round=number,
            site=self.name,
            model_digest=model,
        )
        signed = self.sign(Label.MODEL_REPORT, report)
        await self.stub.PostModelReport(pb.PostRequest(study=self.study, record=signed))


class Operator(Caller):
    def order(self, digest: bytes, action: int, reason: str = "") -> study_pb2.OperatorOrder:
        command = study_pb2.OperatorCommand(
            action=action, manifest_digest=digest, reason=reason, issued_at=int(time.time())
        )
        return study_pb2.OperatorOrder(
            command=self.sign(Label.OPERATOR_COMMAND, command), credential=self.member.credential.signed
        )

    async def start(self, signed: Signed, weights: np.ndarray, digest: bytes | None = None) -> None:
        digest = record_digest(Label.MANIFEST, signed) if digest is None else digest
        order = self.order(digest, study_pb2.OperatorCommand.ACTION_START)
        raw = weights.astype("<f4").tobytes()

        def messages() -> Iterator[pb.StartStudyMessage]:
            yield pb.StartStudyMessage(order=order, manifest=signed)
            for start in range(0, len(raw), 50_000):
                yield pb.StartStudyMessage(weights=raw[start : start + 50_000])

        await self.send("StartStudy", messages())

    async def status(self, study: str = "trial") -> pb.StudyStatus:
        return await self.stub.GetStudyStatus(pb.StudyStatusRequest(study=study))


@contextlib.asynccontextmanager
async def running(folder: Path, **settings: Any) -> AsyncIterator[str]:
    """A coordinator in this process."""
    stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
    service = Service(Settings(folder, "127.0.0.1:0", **settings))
    task = asyncio.create_task(service.run(ready.set_result, stop))
    await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
    try:
        yield ready.result()
    finally:
        stop.set()
        await asyncio.wait_for(task, 15)


@contextlib.asynccontextmanager
async def refused(kind: type[CipherwardError], text: str = "") -> AsyncIterator[None]:
    """The call inside must fail with that error, told whole in the trailer."""
    with pytest.raises(grpc.RpcError) as caught:
        yield
    details = [value for key, value in caught.value.trailing_metadata() or () if key == "cw-error-bin"]
    assert details, f"no error detail: {caught.value}"
    detail = ErrorDetail.FromString(details[0])
    error = from_wire(WireError(detail.code, detail.what, detail.why, detail.fix))
    assert type(error) is kind, f"{type(error).__name__}: {error}"
    assert text in str(error), str(error)


@pytest.fixture(scope="session")
def cipher() -> Iterator[Any]:
    """Real CKKS: encrypts vectors into chunks, and opens sums."""
    params = suite("shared-key").parameters(SET, BOUND)
    side = site_side("shared-key")
    with side.cipher(side.generate_key(params), b"") as opened:
        yield SimpleNamespace(params=params, encrypt=opened.encrypt, open_sum=opened.open_sum)


@pytest.fixture(scope="session")
def updates(cipher: Any) -> list[tuple[np.ndarray, list[bytes]]]:
    """Four sites' updates, in clear and encrypted; made once."""
    length, made = Layout(PARAMETERS, 3).length, []
    for seed in range(4):
        vector = np.random.default_rng(seed).uniform(-1, 1, length).astype(np.float32)
        vector[-1] = 1.0
        made.append((vector, list(cipher.encrypt(vector))))
    return made


class World:
    """Four sites, an operator, and a coordinator's folder."""

    Consortium, Site, Operator, Caller = Consortium, Site, Operator, Caller
    running, refused = staticmethod(running), staticmethod(refused)
    key_digest = KEY_DIGEST

    def __init__(self, folder: Path) -> None:
        self.consortium = Consortium(folder)
        self.coordinator = self.consortium.member(Role.COORDINATOR, "hub")
        self.folder = folder / "coordinator-hub"
        self.operator_member = self.consortium.member(Role.OPERATOR, "olga")
        self.members = [self.consortium.member(Role.SITE, name) for name in ("anna", "bert", "cora", "dora")]
        self.weights = np.linspace(-1, 1, PARAMETERS).astype(np.float32)

    def manifest(self, **changes: Any) -> tuple[Signed, StudyTrust]:
        return self.consortium.manifest(self.members, self.coordinator, self.weights, **changes)

    def sites(self, address: str, trust: StudyTrust) -> list[Site]:
        return [Site(member, address, trust) for member in self.members]

    def operator(self, address: str) -> Operator:
        return Operator(self.operator_member, address)

    async def started(self, address: str, **changes: Any) -> list[Site]:
        """A study with its keys relayed: round 1 is open."""
        signed, trust = self.manifest(**changes)
        await self.operator(address).start(signed, self.weights)
        sites = self.sites(address, trust)
        for site in sites:
            await sites[0].put_relay(sites[0].key_item(site.name))
        return sites

    async def planned(self, address: str, **changes: Any) -> list[Site]:
        """As ``started``, and all have joined round 1."""
        sites = await self.started(address, **changes)
        await self.each(site.join(1) for site in sites)
        return sites

    @staticmethod
    async def each(calls: Any) -> None:
        """All of them at the same time."""
        await asyncio.gather(*calls)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PrivatePostgresql]:
    """A private server; a test that stops it starts it again."""
    with private_postgresql(in_memory()) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of each kind that is supported."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/coordinator.db"
        return
    server: PrivatePostgresql = request.getfixturevalue("postgresql")
    url = server.new_database()
    yield url
    server.drop(url)
