"""Signed records from sites: joins, commits, model reports."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import Message

from cipherward.coordinator.api.dispatch import Call
from cipherward.coordinator.daemon.core import Core
from cipherward.coordinator.daemon.view import StudyView, update_set
from cipherward.coordinator.rounds.events import CommitPosted, JoinPosted, ReportPosted
from cipherward.coordinator.store.database import Transaction
from cipherward.coordinator.store.studies import COMMIT, JOIN, REPORT
from cipherward.crypto import merkle
from cipherward.crypto.labels import Label
from cipherward.crypto.records import verify_commit, verify_join, verify_model_report
from cipherward.crypto.signing import record_digest, verify
from cipherward.errors import (
    ConflictError,
    IdentityError,
    LateError,
    NotFoundError,
    ProtocolError,
    VerificationError,
)
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.coordinator_pb2 import RECORD_KIND_CLOSE, PostReply, PostRequest
from cipherward.proto.v1.round_pb2 import Commit, Join, ModelReport

M = TypeVar("M", bound=Message)


class Posts:
    """See the service's definition."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def join(self, call: Call, request: PostRequest) -> PostReply:
        """Step 3: a site is ready to upload."""
        view, join = self._open(call, request, Label.JOIN, Join)
        number = join.round
        self._bill(request, number)
        if await self._is_repeat(request, number, JOIN, call.name):
            return self._reply(request, number, call)
        self._of_this_round(view, number, "join")
        if view.round_record is None:
            raise ProtocolError(f"round {number} is not open yet", why="sites are waiting for their keys")
        verify_join(request.record, view.version(number).trust, view.round_record, number, call.name)
        event = JoinPosted(
            call.name, number, record_digest(Label.JOIN, request.record), join.shared_key_digest
        )
        await self._core.studies.apply(
            view.name,
            event,
            lambda t: t.studies.put_post(view.name, number, JOIN, call.name, request.record),
        )
        return self._reply(request, number, call)

    async def commit(self, call: Call, request: PostRequest) -> PostReply:
        """Step 3: a site signed for what it uploaded. Answered only once that is durable."""
        view, commit = self._open(call, request, Label.COMMIT, Commit)
        number = commit.round
        self._bill(request, number)
        if await self._is_repeat(request, number, COMMIT, call.name):
            return self._reply(request, number, call)
        self._of_this_round(view, number, "commit")
        if view.plan is None:
            raise ProtocolError(f"round {number} has no plan yet", why="a commit follows the plan record")
        version = view.version(number)
        verify_commit(request.record, version.trust, view.plan, call.name)
        if commit.length != version.length or commit.chunk_count != version.params.chunk_count(
            version.length
        ):
            raise VerificationError(
                f"{call.name} committed {commit.length} values in {commit.chunk_count} chunks",
                why=f"the study's updates have {version.length}",
            )

        def also(t: Transaction) -> None:
            stored = t.chunks.load(update_set(view.name, number, call.name, commit.attempt))
            if stored.count != commit.chunk_count:
                raise ProtocolError(
                    f"{call.name} committed {commit.chunk_count} chunks and uploaded {stored.count}",
                    fix="Upload the rest first",
                )
            if merkle.root(stored.leaves()) != commit.ciphertext_root:
                raise VerificationError(f"{call.name} committed something else than it uploaded")
            t.studies.put_post(view.name, number, COMMIT, call.name, request.record)

        event = CommitPosted(call.name, number, commit.attempt, record_digest(Label.COMMIT, request.record))
        await self._core.studies.apply(view.name, event, also)
        return self._reply(request, number, call)

    async def report(self, call: Call, request: PostRequest) -> PostReply:
        """Step 7: the model that a site has. Also from sites outside U, and late."""
        view, report = self._open(call, request, Label.MODEL_REPORT, ModelReport)
        number = report.round
        self._bill(request, number)
        if await self._is_repeat(request, number, REPORT, call.name):
            return self._reply(request, number, call)
        verify_model_report(request.record, view.version(number).trust, number, call.name)

        def also(t: Transaction) -> None:
            closed = t.studies.record(view.name, number, RECORD_KIND_CLOSE)
            if closed is None:
                raise ProtocolError(f"round {number} is not closed", why="a model report follows its close")
            if record_digest(Label.CLOSE_RECORD, closed) != report.close_digest:
                raise VerificationError(f"{call.name} reports on another close of round {number}")
            t.studies.put_post(view.name, number, REPORT, call.name, request.record)
            if number == view.state.round:
                t.studies.report_round(view.name, number, self._core.clock.now())

        await self._core.studies.apply(view.name, ReportPosted(call.name, number, report.model_digest), also)
        return self._reply(request, number, call)

    def _open(self, call: Call, request: PostRequest, label: Label, kind: type[M]) -> tuple[StudyView, M]:
        view = self._core.studies.require(request.study)
        view.require_site(call.name, call.peer.tls_key_digest)
        if request.record.signer != str(call.peer.identity):
            raise IdentityError(
                f"{call.name} posted a record of {request.record.signer[:120]!r}",
                why="a site posts its own records only",
            )
        # Which version's roster applies depends on the round, which only a verified record can say; the key
        # is the same in all versions, or the connection would have been refused above.
        trust = next(v.trust for v in reversed(view.versions) if call.name in v.trust.sites)
        record = verify(request.record, label, trust.site(call.name).signing_key, kind)
        return view, record

    def _of_this_round(self, view: StudyView, number: int, what: str) -> None:
        state = view.state
        if number < state.round:
            raise LateError(
                f"a {what} for round {number} came late", why=f"the study is at round {state.round}"
            )
        if number > state.round:
            raise ProtocolError(f"round {number} is not open", why=f"the study is at round {state.round}")
        if not state.running:
            raise LateError(f"study {view.name} is {state.life.value}", why=state.reason)

    async def _is_repeat(self, request: PostRequest, number: int, kind: str, site: str) -> bool:
        def stored(t: Transaction) -> Signed | None:
            return t.studies.post(request.study, number, kind, site)

        before = await self._core.writer.transaction(stored)
        if before is None:
            return False
        if before == request.record:
            return True
        if kind == COMMIT:
            raise ConflictError(f"{site} already committed another update in round {number}")
        return False

    def _bill(self, request: PostRequest, number: int) -> None:
        self._core.traffic.up(request.study, number, request)

    def _reply(self, request: PostRequest, number: int, call: Call) -> PostReply:
        reply = PostReply()
        self._core.traffic.down(request.study, number, reply)
        self._core.presence.refused(call.name, "")
        self._core.watching.wake_operators()
        return reply


async def not_in_this_suite(call: Call, request: Message) -> PostReply:
    """A step of the quorum suite that no suite of this version has."""
    raise ProtocolError(
        f"{call.rpc} is refused", why="the study's suite has no such step", fix="Update the caller"
    )


def not_found(what: str) -> NotFoundError:
    """The error for something that does not exist, or not yet."""
    return NotFoundError(f"there is no {what}")
