"""An operator's calls to the coordinator, for the commands of ``cipherward study``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from cipherward.crypto.labels import Label
from cipherward.crypto.manifest import manifest_digest
from cipherward.crypto.pki.store import Member, load_member
from cipherward.durable import explained
from cipherward.errors import EnvironmentProblem
from cipherward.ids import Role
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.coordinator_pb2 import (
    GetManifestRequest,
    StartStudyMessage,
    StudyStatus,
    StudyStatusRequest,
)
from cipherward.proto.v1.coordinator_pb2_grpc import CoordinatorStub
from cipherward.proto.v1.study_pb2 import OperatorCommand, OperatorOrder
from cipherward.site_agent.client.channel import check_address
from cipherward.site_agent.client.errors import translated

_PIECE = 2**20
_CALL_SECONDS = 30.0
_START_SECONDS = 3600.0
_OPTIONS = (
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.max_receive_message_length", 16 * 2**20),
)


class OperatorClient:
    """Calls with one operator's certificate; orders are signed with its key."""

    def __init__(self, member: Member, stub: CoordinatorStub) -> None:
        self._member, self._stub = member, stub

    def _order(self, digest: bytes, action: OperatorCommand.Action.ValueType, reason: str) -> OperatorOrder:
        command = OperatorCommand(
            action=action, manifest_digest=digest, reason=reason, issued_at=int(time.time())
        )
        signed = self._member.signing_key.sign(Label.OPERATOR_COMMAND, command, str(self._member.identity))
        return OperatorOrder(command=signed, credential=self._member.credential.signed)

    def start(self, manifest: Signed, weights: Path) -> None:
        """Start the study, or bring a newer version of its manifest. ``weights``: float32, little-endian."""
        order = self._order(manifest_digest(manifest), OperatorCommand.ACTION_START, "")
        if not weights.is_file():
            raise EnvironmentProblem(
                f"cannot read {weights}", why="there is no such file", fix="Check --weights"
            )

        def messages() -> Iterator[StartStudyMessage]:
            yield StartStudyMessage(order=order, manifest=manifest)
            with explained("read", weights), weights.open("rb") as file:
                while piece := file.read(_PIECE):
                    yield StartStudyMessage(weights=piece)

        with translated():
            self._stub.StartStudy(messages(), timeout=_START_SECONDS)

    def abort(self, study: str, reason: str) -> None:
        """End the study."""
        with translated():
            manifest = self._stub.GetManifest(GetManifestRequest(study=study), timeout=_CALL_SECONDS)
            order = self._order(manifest_digest(manifest), OperatorCommand.ACTION_ABORT, reason)
            self._stub.AbortStudy(order, timeout=_CALL_SECONDS)

    def status(self, study: str) -> StudyStatus:
        """Of that study; empty: of the one signed last."""
        with translated():
            return self._stub.GetStudyStatus(StudyStatusRequest(study=study), timeout=_CALL_SECONDS)

    def watch(self, study: str) -> Iterator[StudyStatus]:
        """Its status at every change."""
        with translated():
            yield from self._stub.WatchStudy(StudyStatusRequest(study=study), wait_for_ready=False)


@contextmanager
def dial(folder: Path, address: str) -> Iterator[OperatorClient]:
    """The operator of ``folder``, connected to the coordinator at HOST:PORT. UsageError for another address."""
    check_address(address)
    member = load_member(folder, Role.OPERATOR, time.time())
    with grpc.secure_channel(address, member.channel_credentials(), options=list(_OPTIONS)) as channel:
        yield OperatorClient(member, CoordinatorStub(channel))
