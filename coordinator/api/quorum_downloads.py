"""What members of J fetch in the quorum suite: their shares, their keys of the answers, single chunks of updates
for collective verification, and what others say of the sum. Each with the proof that its reader needs.

Streams are read in small batches: 1,000 members fetch at the same time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from cipherward.coordinator.api.dispatch import Call
from cipherward.coordinator.api.limits import exceeded
from cipherward.coordinator.api.policy import MAX_CHUNKS
from cipherward.coordinator.api.posting import of_this_round, plan_with, require_quorum
from cipherward.coordinator.daemon.core import Core
from cipherward.coordinator.daemon.proven import ProvenSets, read_all
from cipherward.coordinator.daemon.view import StudyView, answer_set, share_set, update_set
from cipherward.coordinator.rounds.state import Phase
from cipherward.coordinator.store.chunks import Place
from cipherward.coordinator.store.studies import ANSWER, COMMIT, SUM_CHECK
from cipherward.crypto.records import Plan
from cipherward.errors import EnvironmentProblem, FormatError, ProtocolError
from cipherward.ids import Digest
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.coordinator_pb2 import (
    AnswerMessage,
    DataChunk,
    GetRecordRequest,
    GetUpdateChunksRequest,
    ShareMessage,
)

BATCH = 8
"""Shares, answers or checks read ahead for one caller."""

Request = GetRecordRequest | GetUpdateChunksRequest


class QuorumDownloads:
    """See the service's definition."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._proven = ProvenSets()

    async def shares(self, call: Call, request: GetRecordRequest) -> AsyncGenerator[ShareMessage, None]:
        """The share for the caller of each dealer that committed, in the order of J."""
        view, plan = self._view(call, request, "request for shares", Phase.ACKNOWLEDGE)
        place, commits = plan.places[call.name], view.state.commits
        dealers = [site for site in plan.members if site in commits]
        for batch in _batches(dealers):
            signed = await self._posts(view, COMMIT, batch)
            names = [share_set(view.name, request.round, site, commits[site].attempt) for site, _ in signed]
            sets = [await self._proven.get(name, self._core.writer) for name in names]
            sealed = await self._read(view, [one.place(place) for one in sets])
            for (_, commit), one, data in zip(signed, sets, sealed, strict=True):
                share = ShareMessage(sealed=data, index=place, inclusion=one.prove(place), commit=commit)
                self._core.traffic.down(view.name, request.round, share)
                yield share

    async def answers(self, call: Call, request: GetRecordRequest) -> AsyncGenerator[AnswerMessage, None]:
        """The answers so far, in the order of J, each with its key for the caller."""
        view, plan = self._view(call, request, "request for answers", Phase.UNSEAL)
        place, answered = plan.places[call.name], view.state.answers
        for batch in _batches([site for site in plan.members if site in answered]):
            signed = await self._posts(view, ANSWER, batch)
            names = [answer_set(view.name, request.round, site) for site, _ in signed]
            sets = [await self._proven.get(name, self._core.writer) for name in names]
            sealed = await self._read(view, [one.place(place) for one in sets])
            for (_, record), one, data in zip(signed, sets, sealed, strict=True):
                answer = AnswerMessage(record=record, sealed_key=data, inclusion=one.prove(place))
                self._core.traffic.down(view.name, request.round, answer)
                yield answer

    async def update_chunks(
        self, call: Call, request: GetUpdateChunksRequest
    ) -> AsyncGenerator[DataChunk, None]:
        """Each chunk asked for, once for each contributor in the order of U, with its proof; without the caller's
        own where it asks for that."""
        view, _ = self._view(call, request, "request for chunks", Phase.UNSEAL)
        version, commits = view.version(request.round), view.state.commits
        wanted = [site for site in view.state.contributors if not (request.without_own and site == call.name)]
        _check_amount(call.rpc, len(request.indices), len(wanted))
        _check_indices(request.indices, version.params.chunk_count(version.length))
        # Places and proofs only: the trees of 1,000 updates of 100 M parameters are a gigabyte.
        proven: list[tuple[str, list[tuple[Place, list[Digest]]]]] = []
        for site in wanted:
            name = update_set(view.name, request.round, site, commits[site].attempt)
            one = await self._proven.get(name, self._core.writer)
            proven.append((site, [(one.place(index), one.prove(index)) for index in request.indices]))
        for at, index in enumerate(request.indices):
            for site, found in proven:
                place, proof = found[at]
                (data,) = await self._read(view, [place])
                chunk = DataChunk(index=index, data=data, inclusion=proof, site=site)
                self._core.traffic.down(view.name, request.round, chunk)
                yield chunk

    async def sum_checks(self, call: Call, request: GetRecordRequest) -> AsyncGenerator[Signed, None]:
        """The newest sum check of each member that made one."""
        view, plan = self._view(call, request, "request for sum checks", Phase.UNSEAL)
        for batch in _batches(plan.members):
            for _, signed in await self._posts(view, SUM_CHECK, batch):
                self._core.traffic.down(view.name, request.round, signed)
                yield signed

    def _view(self, call: Call, request: Request, what: str, first: Phase) -> tuple[StudyView, Plan]:
        """The study at the request's round, in phase ``first`` or later, and its plan with the caller."""
        view = self._core.studies.require(request.study)
        view.require_site(call.name, call.peer.tls_key_digest)
        require_quorum(call, view)
        self._core.traffic.up(view.name, request.round, request)
        of_this_round(view, request.round, what)
        plan = plan_with(call, view)
        phases = list(Phase)
        if phases.index(view.state.phase) < phases.index(first):
            raise ProtocolError(
                f"the {what} is too early", why=f"the round is at {view.state.phase.value}, not {first.value}"
            )
        return view, plan

    async def _posts(self, view: StudyView, kind: str, sites: Sequence[str]) -> list[tuple[str, Signed]]:
        return await self._core.writer.transaction(
            lambda t: t.studies.posts_of(view.name, view.state.round, kind, sites)
        )

    async def _read(self, view: StudyView, places: list[Place]) -> list[bytes]:
        try:
            return await asyncio.to_thread(read_all, self._core.blobs, places)
        except EnvironmentProblem:
            # Most likely the round ended meanwhile, and its uploads were thrown away.
            of_this_round(self._core.studies.require(view.name), view.state.round, "download")
            raise


def _batches(sites: Sequence[str]) -> list[Sequence[str]]:
    return [sites[start : start + BATCH] for start in range(0, len(sites), BATCH)]


def _check_amount(rpc: str, indices: int, contributors: int) -> None:
    """Each index is answered once for each contributor, with proofs from all their trees."""
    if indices > max(1, MAX_CHUNKS // max(1, contributors)):
        raise exceeded(
            rpc,
            "max_chunks",
            f"{indices} chunks are asked for, of {contributors} updates each",
            f"{MAX_CHUNKS} a call, or one of each update",
            "Ask for fewer at a time",
        )


def _check_indices(indices: Sequence[int], count: int) -> None:
    last = -1
    for index in indices:
        if not last < index < count:
            raise FormatError(
                f"chunk {index} is asked for", why=f"indices rise strictly, and the sum has {count} chunks"
            )
        last = index
