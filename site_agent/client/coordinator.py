"""One method for each RPC that a site calls. Every call has a deadline; every failure is one of our errors.

What comes back is not believed here: callers verify it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import islice
from typing import Any, TypeVar

import grpc

from cipherward.errors import FormatError, NotFoundError
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.coordinator_pb2 import (
    AnswerMessage,
    DataChunk,
    GetManifestRequest,
    GetRecordRequest,
    GetRelayRequest,
    GetStatusListRequest,
    GetSumRequest,
    GetUpdateChunksRequest,
    HelloReply,
    HelloRequest,
    PostAnswerRequest,
    PostRequest,
    RecordKind,
    RelayMessage,
    RequestModelRequest,
    ShareMessage,
    StudySnapshot,
    UploadHeader,
    UploadMessage,
    UploadState,
    WatchWorkRequest,
)
from cipherward.proto.v1.coordinator_pb2_grpc import CoordinatorStub
from cipherward.site_agent.client.errors import translated

R = TypeVar("R")

HELLO_SECONDS = 10.0
CALL_SECONDS = 30.0
STREAM_SECONDS = 3600.0
"""For transfers of models and sums; a broken connection shows by keepalive long before."""


class CoordinatorClient:
    """The coordinator as a site sees it. Thread-safe."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._stub = CoordinatorStub(channel)
        self._calls: set[Any] = set()
        self._lock = threading.Lock()
        self._closed = False

    def cancel(self) -> None:
        """Break off every call, now and from now on: the agent stops."""
        with self._lock:
            self._closed = True
            calls = list(self._calls)
        for call in calls:
            call.cancel()

    @contextmanager
    def _followed(self, call: Any) -> Iterator[Any]:
        """Have ``cancel`` break off ``call`` too; raises our errors for gRPC's inside the block."""
        with self._lock:
            self._calls.add(call)
            closed = self._closed
        try:
            if closed:
                call.cancel()
            with translated():
                yield call
        finally:
            call.cancel()
            with self._lock:
                self._calls.discard(call)

    def _stream(self, call: Any) -> Generator[Any, None, None]:
        with self._followed(call):
            yield from call

    def _unary(self, method: Callable[..., R], request: object, seconds: float = CALL_SECONDS) -> R:
        stub: Any = method  # of gRPC: beside being called it starts calls that can be broken off
        with self._followed(stub.future(request, timeout=seconds)) as call:
            reply: R = call.result()
        return reply

    def hello(self, request: HelloRequest) -> HelloReply:
        """Versions, clocks, status list, studies. Waits for the connection for a few seconds."""
        return self._unary(self._stub.Hello, request, HELLO_SECONDS)

    def status_list(self) -> Signed:
        """The newest status list that the coordinator has."""
        return self._unary(self._stub.GetStatusList, GetStatusListRequest())

    def watch(self) -> Iterator[StudySnapshot]:
        """Snapshots as they change, without end; breaks off with UnavailableError."""
        yield from self._stream(self._stub.WatchWork(WatchWorkRequest()))

    def manifest(self, study: str, version: int = 0) -> Signed:
        """The signed manifest of that version (0: the newest)."""
        return self._unary(self._stub.GetManifest, GetManifestRequest(study=study, version=version))

    def initial_weights(self, study: str, version: int, size: int) -> bytes:
        """The initial weights, exactly ``size`` bytes; raises FormatError for any other number."""
        request = GetManifestRequest(study=study, version=version)
        content = bytearray()
        for chunk in self._stream(self._stub.GetInitialWeights(request, timeout=STREAM_SECONDS)):
            content += chunk.data
            if len(content) > size:
                break
        if len(content) != size:
            raise FormatError("the initial weights have another size than the manifest says")
        return bytes(content)

    def record(self, study: str, round_number: int, kind: RecordKind.ValueType) -> Signed | None:
        """A signed record of the round, or None if there is none."""
        request = GetRecordRequest(study=study, round=round_number, kind=kind)
        try:
            return self._unary(self._stub.GetRecord, request)
        except NotFoundError:
            return None

    def post_join(self, study: str, record: Signed) -> None:
        """Ready to upload."""
        self._unary(self._stub.PostJoin, PostRequest(study=study, record=record))

    def upload_state(self, header: UploadHeader) -> UploadState:
        """How much of the attempt the coordinator has stored durably."""
        return self._unary(self._stub.GetUploadState, header)

    def upload(self, messages: Iterable[UploadMessage]) -> UploadState:
        """Stream chunks and shares; returns what is stored durably."""
        return self._unary(self._stub.Upload, iter(messages), STREAM_SECONDS)

    def post_commit(self, study: str, record: Signed) -> None:
        """The update exists from here on."""
        self._unary(self._stub.PostCommit, PostRequest(study=study, record=record))

    def shares(self, study: str, round_number: int, most: int) -> Iterator[ShareMessage]:
        """The sealed shares addressed to this site; the first ``most``, whatever else is sent."""
        request = GetRecordRequest(study=study, round=round_number)
        return self._first(self._stub.GetShares(request, timeout=STREAM_SECONDS), most)

    def post_acknowledgement(self, study: str, record: Signed) -> None:
        """Which shares opened."""
        self._unary(self._stub.PostAcknowledgement, PostRequest(study=study, record=record))

    def post_answer(self, request: PostAnswerRequest) -> None:
        """The one answer of the round."""
        self._unary(self._stub.PostAnswer, request)

    def answers(self, study: str, round_number: int, most: int) -> Iterator[AnswerMessage]:
        """The members' answers, each with the key sealed to this site; the first ``most``."""
        request = GetRecordRequest(study=study, round=round_number)
        return self._first(self._stub.GetAnswers(request, timeout=STREAM_SECONDS), most)

    def update_chunks(
        self, study: str, round_number: int, indices: list[int], *, without_own: bool
    ) -> Iterator[DataChunk]:
        """For each index in turn, that chunk of every update in U, in order; of all but this site's own if so
        asked."""
        request = GetUpdateChunksRequest(
            study=study, round=round_number, indices=indices, without_own=without_own
        )
        yield from self._stream(self._stub.GetUpdateChunks(request, timeout=STREAM_SECONDS))

    def post_sum_check(self, study: str, record: Signed) -> None:
        """Chunks of the sum that this site added up itself."""
        self._unary(self._stub.PostSumCheck, PostRequest(study=study, record=record))

    def sum_checks(self, study: str, round_number: int, most: int) -> Iterator[Signed]:
        """The members' sum checks; the first ``most``."""
        request = GetRecordRequest(study=study, round=round_number)
        return self._first(self._stub.GetSumChecks(request, timeout=STREAM_SECONDS), most)

    def _first(self, call: Any, most: int) -> Iterator[Any]:
        # One at a time: all of them together may be far larger than what a caller keeps of them.
        with closing(self._stream(call)) as messages:
            yield from islice(messages, most)

    def sum_chunks(self, study: str, round_number: int, first_index: int) -> Iterator[DataChunk]:
        """Chunks of the sum from that index on."""
        request = GetSumRequest(study=study, round=round_number, first_index=first_index)
        yield from self._stream(self._stub.GetSum(request, timeout=STREAM_SECONDS))

    def post_model_report(self, study: str, record: Signed) -> None:
        """The model that this site has."""
        self._unary(self._stub.PostModelReport, PostRequest(study=study, record=record))

    def model_reports(self, study: str, round_number: int, most: int) -> Iterator[Signed]:
        """What the sites reported after the round; the first ``most``, whatever else is sent."""
        request = GetRecordRequest(study=study, round=round_number)
        return self._first(self._stub.GetModelReports(request, timeout=CALL_SECONDS), most)

    def put_relay(self, messages: Iterable[RelayMessage]) -> None:
        """Leave a sealed item for another site."""
        self._unary(self._stub.PutRelay, iter(messages), STREAM_SECONDS)

    def get_relay(self, study: str, kind: int, sender: str = "") -> Iterator[RelayMessage]:
        """A sealed item for this site: the signed item first, then its body. Nothing if there is none yet."""
        request = GetRelayRequest(study=study, kind=kind, sender=sender)
        try:
            yield from self._stream(self._stub.GetRelay(request, timeout=STREAM_SECONDS))
        except NotFoundError:
            return

    def request_model(self, study: str, round_number: int) -> None:
        """Ask the other sites for the newest model; ``round_number``: the last whose model this site has."""
        self._unary(self._stub.RequestModel, RequestModelRequest(study=study, round=round_number))
