"""Orders of operators: start and abort studies, see how they stand. An order counts by its signature, made
with a key that the root certified; that it came over the operator's own connection is checked besides."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator

from cipherward.coordinator.api.dispatch import Call
from cipherward.coordinator.api.posting import not_found
from cipherward.coordinator.api.status import study_status
from cipherward.coordinator.api.storing import taken_back, to_its_end
from cipherward.coordinator.blobs.writer import SegmentWriter
from cipherward.coordinator.daemon.core import Core
from cipherward.coordinator.daemon.manifests import read_manifest
from cipherward.coordinator.daemon.view import StudyView, Version
from cipherward.coordinator.rounds.events import StudyAborted, VersionAdded
from cipherward.coordinator.store.chunks import Segment
from cipherward.crypto.labels import Label, framed
from cipherward.crypto.manifest import verify_successor
from cipherward.crypto.merkle import leaf_hash
from cipherward.crypto.pki.credentials import verify_credential
from cipherward.crypto.signing import verify
from cipherward.errors import ConflictError, FormatError, IdentityError, LateError, VerificationError
from cipherward.ids import Role
from cipherward.proto.v1.coordinator_pb2 import (
    PostReply,
    StartStudyMessage,
    StudyStatus,
    StudyStatusRequest,
)
from cipherward.proto.v1.study_pb2 import OperatorCommand, OperatorOrder

CHUNK_BYTES = 2**20


class Operators:
    """See the service's definition."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._starting = asyncio.Lock()

    def _command(
        self, call: Call, order: OperatorOrder, action: OperatorCommand.Action.ValueType
    ) -> OperatorCommand:
        core = self._core
        credential = verify_credential(
            order.credential, core.member.anchor, core.clock.now(), core.member.status, Role.OPERATOR
        )
        if credential.identity != call.peer.identity:
            raise IdentityError(
                f"{call.peer.identity} brings an order of {credential.identity}",
                why="operators bring their own orders",
            )
        command = verify(order.command, Label.OPERATOR_COMMAND, credential.signing_key, OperatorCommand)
        if command.action != action:
            raise VerificationError("the operator signed another order than this one")
        return command

    async def start(self, call: Call, messages: AsyncIterator[StartStudyMessage]) -> PostReply:
        """Start a study by its first manifest and initial weights, or bring a newer version of it."""
        first = await anext(messages, None)
        if first is None or not first.HasField("order") or not first.HasField("manifest"):
            raise FormatError("a start does not begin with the order and the manifest")
        command = self._command(call, first.order, OperatorCommand.ACTION_START)
        version = read_manifest(first.manifest, self._core.member.anchor, self._core.member.credential)
        if command.manifest_digest != version.trust.digest:
            raise VerificationError("the operator's order is for another manifest")
        async with self._starting:
            view = self._core.studies.get(version.trust.manifest.study)
            if view is not None and self._is_known(view, version):
                return PostReply()
            if view is not None:
                await self._add_version(view, version)
            elif version.number != 1:
                raise LateError(
                    f"version {version.number} of {version.trust.manifest.study} came first",
                    why="this coordinator has no version 1",
                    fix="Start the study with version 1",
                )
            else:
                await self._create(version, messages)
        return PostReply()

    def _is_known(self, view: StudyView, version: Version) -> bool:
        for known in view.versions:
            if known.number == version.number:
                if known.trust.digest != version.trust.digest:
                    raise ConflictError(
                        f"study {view.name} has another manifest of version {known.number}",
                        fix="Choose another study name, or sign the next version",
                    )
                return True
        return False

    async def _add_version(self, view: StudyView, version: Version) -> None:
        verify_successor(view.versions[-1].trust, version.trust)
        if not view.state.running:
            raise LateError(f"study {view.name} is {view.state.life.value}", why=view.state.reason)
        if version.rules().first_round <= view.state.round:
            raise LateError(
                f"version {version.number} begins with round {version.rules().first_round}",
                why=f"round {view.state.round} has begun",
                fix="Sign a version that begins with a later round",
            )
        await to_its_end(self._core.studies.add_version(view.name, version, VersionAdded()))

    async def _create(self, version: Version, messages: AsyncIterator[StartStudyMessage]) -> None:
        name = f"{version.trust.manifest.study}/weights/{secrets.token_hex(8)}"
        segments: list[Segment] = []
        async with taken_back(self._core.blobs, segments):
            await self._receive_weights(version, messages, segments)
        await to_its_end(self._record(version, name, segments))

    async def _record(self, version: Version, name: str, segments: list[Segment]) -> None:
        async with taken_back(self._core.blobs, segments):
            await self._core.studies.create(version, name, segments)

    async def _receive_weights(
        self, version: Version, messages: AsyncIterator[StartStudyMessage], segments: list[Segment]
    ) -> None:
        manifest = version.trust.manifest
        size, received = 4 * manifest.parameter_count, 0
        # digest(MODEL_DIGEST, weights), computed as they come.
        hasher = hashlib.sha256(framed(Label.MODEL_DIGEST) + size.to_bytes(8, "big"))
        writer = SegmentWriter(self._core.blobs, 0)
        async for message in messages:
            if message.HasField("order") or message.HasField("manifest"):
                raise FormatError("a start has one order and one manifest")
            if not message.weights:
                raise FormatError("a message of a start is empty")
            received += len(message.weights)
            if received > size:
                break
            hasher.update(message.weights)
            for start in range(0, len(message.weights), CHUNK_BYTES):
                chunk = message.weights[start : start + CHUNK_BYTES]
                writer.add(chunk, leaf_hash(chunk))
            if writer.full:
                segments += filter(None, [await asyncio.to_thread(writer.flush)])
        segments += filter(None, [await asyncio.to_thread(writer.flush)])
        if received != size or hasher.digest() != manifest.initial_weights_digest:
            raise VerificationError(
                "the initial weights are not the ones that the manifest names",
                why=f"{received} bytes came, the model has {size}" if received != size else "digests differ",
                fix="Give the file that was there when the manifest was signed",
            )

    async def abort(self, call: Call, request: OperatorOrder) -> PostReply:
        """End a study."""
        command = self._command(call, request, OperatorCommand.ACTION_ABORT)
        for view in self._core.studies.views:
            if any(version.trust.digest == command.manifest_digest for version in view.versions):
                reason = f"aborted by {call.name}: {command.reason[:300] or 'no reason given'}"
                await self._core.studies.apply(view.name, StudyAborted(reason))
                return PostReply()
        raise not_found("study with that manifest here")

    async def status(self, call: Call, request: StudyStatusRequest) -> StudyStatus:
        """The status of a study; without a name, of the one signed last."""
        core = self._core
        if request.study:
            return await study_status(core, core.studies.require(request.study))
        views = core.studies.views
        if not views:
            raise not_found("study here yet")
        return await study_status(
            core, max(views, key=lambda view: view.versions[0].trust.manifest.signed_at)
        )
