"""Signed records from sites that only the quorum suite has: acknowledgements, answers, sum checks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from cipherward.coordinator.api.dispatch import Call
from cipherward.coordinator.api.posting import Post, Posting, of_this_round, plan_with, require_quorum
from cipherward.coordinator.api.storing import taken_back
from cipherward.coordinator.blobs.writer import SegmentWriter
from cipherward.coordinator.daemon.view import StudyView, answer_set
from cipherward.coordinator.rounds import machine
from cipherward.coordinator.rounds.events import AcknowledgementPosted, AnswerPosted
from cipherward.coordinator.rounds.state import Phase
from cipherward.coordinator.store.chunks import Segment
from cipherward.coordinator.store.database import Transaction
from cipherward.coordinator.store.studies import ACKNOWLEDGEMENT, ANSWER, SUM_CHECK
from cipherward.crypto.labels import Label
from cipherward.crypto.merkle import leaf_hash
from cipherward.crypto.quorum_records import (
    SEALED_KEY_BYTES,
    sealed_root,
    verify_acknowledgement,
    verify_answer,
    verify_sum_check,
)
from cipherward.crypto.signing import record_digest
from cipherward.errors import FormatError, ProtocolError, VerificationError
from cipherward.ids import Digest
from cipherward.proto.v1.coordinator_pb2 import PostAnswerRequest, PostReply, PostRequest
from cipherward.proto.v1.round_pb2 import Acknowledgement, Answer, SumCheck

CLOSED = (Phase.UNSEAL, Phase.RELEASE)


class QuorumPosts(Posting):
    """See the service's definition."""

    async def acknowledgement(self, call: Call, request: PostRequest) -> PostReply:
        """Step 4: a member opened the shares addressed to it, or says whose it could not."""
        self._require_quorum(call, request)
        view, record = self._open(call, request, Label.ACKNOWLEDGEMENT, Acknowledgement)
        number = record.round
        self._bill(request, number)
        if await self._is_repeat(view, request, number, ACKNOWLEDGEMENT, call.name):
            return self._reply(request, number, call)
        of_this_round(view, number, "acknowledgement")
        trust = view.version(number).trust
        verify_acknowledgement(request.record, trust, plan_with(call, view), call.name)
        event = AcknowledgementPosted(call.name, number, frozenset(item.site for item in record.unopenable))

        def also(t: Transaction) -> None:
            # The upload phase is over, or the event was refused: no further commit can come.
            commits = self._core.studies.require(view.name).state.commits
            named = {item.site: item.attempt for item in (*record.opened, *record.unopenable)}
            if named != {site: commit.attempt for site, commit in commits.items()}:
                raise VerificationError(
                    f"{call.name} does not acknowledge the shares that were dealt in round {number}",
                    why="an acknowledgement names every site that committed, with its attempt",
                )
            t.studies.put_post(view.name, number, ACKNOWLEDGEMENT, call.name, request.record)

        await self._core.studies.apply(view.name, event, also)
        return self._reply(request, number, call)

    async def answer(self, call: Call, request: PostAnswerRequest) -> PostReply:
        """Step 6: a member's sum of shares, with its key sealed to each member. Told only once durable."""
        self._require_quorum(call, request)
        view, record = self._open(call, request, Label.ANSWER, Answer)
        number = record.round
        self._bill(request, number)
        if await self._is_repeat(view, request, number, ANSWER, call.name):
            return self._reply(request, number, call)
        of_this_round(view, number, "answer")
        plan, close = plan_with(call, view), _close_of(view)
        verify_answer(request.record, view.version(number).trust, plan, close, call.name)
        _check_keys(call.name, request.sealed_keys, len(plan.members), record.key_root)
        event = AnswerPosted(call.name, number, record_digest(Label.ANSWER, request.record))
        # What the round does not allow is refused before anything is written.
        machine.step(view.rules, view.state, event, self._core.clock.monotonic())
        # Shielded: a caller that hangs up must not come between the keys and their record.
        await asyncio.shield(self._store_answer(call, view, request, event))
        return self._reply(request, number, call)

    async def _store_answer(
        self, call: Call, view: StudyView, request: PostAnswerRequest, event: AnswerPosted
    ) -> None:
        name = answer_set(view.name, event.round, call.name)
        parts = await asyncio.to_thread(self._write, list(request.sealed_keys))
        used = False

        def also(t: Transaction) -> None:
            nonlocal used
            if t.studies.post(view.name, event.round, ANSWER, call.name) is not None:
                return  # the same answer came twice at once
            used = True
            for part in parts:
                t.chunks.add(name, part)
            t.studies.put_post(view.name, event.round, ANSWER, call.name, request.record)

        async with taken_back(self._core.blobs, parts):
            await self._core.studies.apply(view.name, event, also)
        if not used:
            await asyncio.to_thread(self._core.blobs.discard, [part.blob for part in parts])

    def _write(self, sealed_keys: Sequence[bytes]) -> list[Segment]:
        writer, parts = SegmentWriter(self._core.blobs, 0), []
        for index, key in enumerate(sealed_keys, 1):
            writer.add(key, leaf_hash(key))
            if (writer.full or index == len(sealed_keys)) and (part := writer.flush()) is not None:
                parts.append(part)
        return parts

    async def sum_check(self, call: Call, request: PostRequest) -> PostReply:
        """Step 7: chunks of the sum that a member added up itself. The newest of a site replaces the last."""
        self._require_quorum(call, request)
        view, record = self._open(call, request, Label.SUM_CHECK, SumCheck)
        number = record.round
        self._bill(request, number)
        of_this_round(view, number, "sum check")
        plan, close, version = plan_with(call, view), _close_of(view), view.version(number)
        count = version.params.chunk_count(version.length)
        verify_sum_check(request.record, version.trust, plan, close, count, call.name)

        def store(t: Transaction) -> None:
            # Views change in this thread only: the round is still this one when the check is written.
            now = self._core.studies.require(view.name)
            of_this_round(now, number, "sum check")
            t.studies.put_post(view.name, number, SUM_CHECK, call.name, request.record)

        await self._core.writer.transaction(store)
        return self._reply(request, number, call)

    def _require_quorum(self, call: Call, request: Post) -> None:
        view = self._core.studies.require(request.study)
        view.require_site(call.name, call.peer.tls_key_digest)
        require_quorum(call, view)


def _close_of(view: StudyView) -> Digest:
    if view.close is None or view.state.phase not in CLOSED:
        raise ProtocolError(f"round {view.state.round} is not closed", why="its sum is not complete")
    return view.close


def _check_keys(site: str, sealed_keys: Sequence[bytes], members: int, root: bytes) -> None:
    if len(sealed_keys) != members:
        raise FormatError(
            f"{site}'s answer has {len(sealed_keys)} sealed keys", why=f"J has {members} members"
        )
    for key in sealed_keys:
        if len(key) != SEALED_KEY_BYTES:
            raise FormatError(
                f"a sealed key of {site}'s answer has {len(key)} bytes",
                why=f"it must have {SEALED_KEY_BYTES}",
            )
    if sealed_root(sealed_keys) != root:
        raise VerificationError(f"{site} answered with other sealed keys than it signed")
