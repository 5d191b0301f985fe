"""Signed records from sites that every suite has: joins, commits, model reports."""

from __future__ import annotations

from cipherward.coordinator.api.dispatch import Call
from cipherward.coordinator.api.posting import Posting, of_this_round
from cipherward.coordinator.daemon.view import StudyView, share_set, update_set
from cipherward.coordinator.rounds.events import CommitPosted, JoinPosted, ReportPosted
from cipherward.coordinator.rounds.state import Phase
from cipherward.coordinator.store.database import Transaction
from cipherward.coordinator.store.studies import COMMIT, JOIN, REPORT
from cipherward.crypto import merkle
from cipherward.crypto.labels import Label
from cipherward.crypto.records import verify_commit, verify_join, verify_model_report
from cipherward.crypto.signing import record_digest
from cipherward.crypto.suites.base import KeyLifetime
from cipherward.errors import ProtocolError, VerificationError
from cipherward.proto.v1.coordinator_pb2 import RECORD_KIND_CLOSE, PostReply, PostRequest
from cipherward.proto.v1.round_pb2 import Commit, Join, ModelReport


class Posts(Posting):
    """See the service's definition."""

    async def join(self, call: Call, request: PostRequest) -> PostReply:
        """Step 3: a site is ready to upload."""
        view, join = self._open(call, request, Label.JOIN, Join)
        number = join.round
        self._bill(request, number)
        if await self._is_repeat(view, request, number, JOIN, call.name):
            return self._reply(request, number, call)
        of_this_round(view, number, "join")
        if view.round_record is None:
            raise ProtocolError(f"round {number} is not open yet", why="sites are waiting for their keys")
        verify_join(request.record, view.version(number).trust, view.round_record, number, call.name)
        event = JoinPosted(
            call.name, number, record_digest(Label.JOIN, request.record), join.shared_key_digest
        )

        def also(t: Transaction) -> None:
            _check_own_key(t, view, join)
            t.studies.put_post(view.name, number, JOIN, call.name, request.record)

        await self._core.studies.apply(view.name, event, also)
        return self._reply(request, number, call)

    async def commit(self, call: Call, request: PostRequest) -> PostReply:
        """Step 3: a site signed for what it uploaded. Answered only once that is durable."""
        view, commit = self._open(call, request, Label.COMMIT, Commit)
        number = commit.round
        self._bill(request, number)
        if await self._is_repeat(view, request, number, COMMIT, call.name):
            return self._reply(request, number, call)
        of_this_round(view, number, "commit")
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
            if version.trust.key_lifetime is KeyLifetime.ATTEMPT:
                self._check_shares(t, view, commit)
            t.studies.put_post(view.name, number, COMMIT, call.name, request.record)

        event = CommitPosted(call.name, number, commit.attempt, record_digest(Label.COMMIT, request.record))
        await self._core.studies.apply(view.name, event, also)
        return self._reply(request, number, call)

    async def report(self, call: Call, request: PostRequest) -> PostReply:
        """Step 7: the model that a site has. Also from sites outside U, and late, but not behind the study's end:
        the reports of the last round say for good whether its model stands."""
        view, report = self._open(call, request, Label.MODEL_REPORT, ModelReport)
        number = report.round
        self._bill(request, number)
        if await self._is_repeat(view, request, number, REPORT, call.name):
            return self._reply(request, number, call)
        verify_model_report(request.record, view.version(number).trust, number, call.name)

        def also(t: Transaction) -> None:
            if self._close_of(t, view, number) != report.close_digest:
                raise VerificationError(f"{call.name} reports on another close of round {number}")
            t.studies.put_post(view.name, number, REPORT, call.name, request.record)
            if number == view.state.round:
                t.studies.report_round(view.name, number, self._core.clock.now())

        await self._core.studies.apply(view.name, ReportPosted(call.name, number, report.model_digest), also)
        return self._reply(request, number, call)

    def _close_of(self, t: Transaction, view: StudyView, number: int) -> bytes:
        now = self._core.studies.require(view.name)
        if now.state.round == number and now.state.phase is Phase.RELEASE and now.close is not None:
            return now.close  # not from the store: with 1,000 sites the record has half a megabyte
        closed = t.studies.record(view.name, number, RECORD_KIND_CLOSE)
        if closed is None:
            raise ProtocolError(f"round {number} is not closed", why="a model report follows its close")
        return record_digest(Label.CLOSE_RECORD, closed)

    def _check_shares(self, t: Transaction, view: StudyView, commit: Commit) -> None:
        stored = t.chunks.load(share_set(view.name, commit.round, commit.site, commit.attempt))
        members = len(view.plan.members) if view.plan else 0
        if stored.count != members:
            raise ProtocolError(
                f"{commit.site} committed and uploaded {stored.count} of {members} shares",
                fix="Upload the rest first",
            )
        if merkle.root(stored.leaves()) != commit.share_root:
            raise VerificationError(f"{commit.site} committed other shares than it uploaded")


def _check_own_key(t: Transaction, view: StudyView, join: Join) -> None:
    """No plan may have a round key twice, and no round ends without a plan: who comes second is refused."""
    if not join.round_key:
        return
    for site, other in t.studies.round_posts(view.name, join.round, JOIN).items():
        # Found without parsing 1,000 joins at each join: the key is longer than all else in a join together.
        if site != join.site and join.round_key in other.payload:
            raise VerificationError(
                f"{join.site} joined round {join.round} with the round key of {site}",
                why="every site makes its own, and only one of them can be the maker of this one",
            )
