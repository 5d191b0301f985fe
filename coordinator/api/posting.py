"""What all signed records from sites go through: whose they are, which round they are for, whether they came
before."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import TypeVar

from google.protobuf.message import Message

from cipherward.coordinator.api.dispatch import Call
from cipherward.coordinator.daemon.core import Core
from cipherward.coordinator.daemon.view import StudyView
from cipherward.coordinator.rounds.state import State
from cipherward.coordinator.store.studies import ACKNOWLEDGEMENT, ANSWER, COMMIT, JOIN, REPORT
from cipherward.crypto.labels import Label
from cipherward.crypto.records import Plan
from cipherward.crypto.signing import verify
from cipherward.crypto.suites.base import KeyLifetime
from cipherward.errors import ConflictError, IdentityError, LateError, NotFoundError, ProtocolError
from cipherward.proto.v1.coordinator_pb2 import PostAnswerRequest, PostReply, PostRequest

M = TypeVar("M", bound=Message)
Post = PostRequest | PostAnswerRequest

FINAL = (COMMIT, ACKNOWLEDGEMENT, ANSWER)
"""Of these a site makes one in a round: another one is refused at once."""
_MADE: dict[str, Callable[[State], Container[str]]] = {
    JOIN: lambda state: state.joins,
    COMMIT: lambda state: state.commits,
    ACKNOWLEDGEMENT: lambda state: state.acknowledgements,
    ANSWER: lambda state: state.answers,
    REPORT: lambda state: state.reports,
}
"""Who made one in the state's round. The state is written together with each post."""


class Posting:
    """Base of the handlers that take signed records."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def _open(self, call: Call, request: Post, label: Label, kind: type[M]) -> tuple[StudyView, M]:
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

    async def _is_repeat(self, view: StudyView, request: Post, number: int, kind: str, site: str) -> bool:
        if number == view.state.round and site not in _MADE[kind](view.state):
            return False
        before = await self._core.writer.transaction(
            lambda t: t.studies.post(request.study, number, kind, site)
        )
        if before is None:
            return False
        if before == request.record:
            return True
        if kind in FINAL:
            raise ConflictError(f"{site} already posted another {kind} in round {number}")
        return False

    def _bill(self, request: Post, number: int) -> None:
        self._core.traffic.up(request.study, number, request)

    def _reply(self, request: Post, number: int, call: Call) -> PostReply:
        reply = PostReply()
        self._core.traffic.down(request.study, number, reply)
        self._core.presence.refused(call.name, "")
        self._core.watching.wake_operators()
        return reply


def of_this_round(view: StudyView, number: int, what: str) -> None:
    """Raises LateError or ProtocolError unless the study is at that round, and running."""
    state = view.state
    if number < state.round:
        raise LateError(
            f"the {what} for round {number} came late", why=f"the study is at round {state.round}"
        )
    if number > state.round:
        raise ProtocolError(f"round {number} is not open", why=f"the study is at round {state.round}")
    if not state.running:
        raise LateError(f"study {view.name} is {state.life.value}", why=state.reason)


def require_quorum(call: Call, view: StudyView) -> None:
    """Raises ProtocolError if the study's suite has no quorum: in the shared-key suite every site holds the
    key, and none may ever receive another's ciphertext."""
    if view.current.trust.key_lifetime is not KeyLifetime.ATTEMPT:
        raise ProtocolError(
            f"{call.rpc} is refused", why="the study's suite has no such step", fix="Update the caller"
        )


def plan_with(call: Call, view: StudyView) -> Plan:
    """The plan of the current round, which must name the caller; raises ProtocolError."""
    number = view.state.round
    if view.plan is None:
        raise ProtocolError(f"round {number} has no plan yet", why="this step follows the plan record")
    if call.name not in view.plan.places:
        raise ProtocolError(f"{call.name} is not in the plan of round {number}")
    return view.plan


def not_found(what: str) -> NotFoundError:
    """The error for something that does not exist, or not yet."""
    return NotFoundError(f"there is no {what}")
