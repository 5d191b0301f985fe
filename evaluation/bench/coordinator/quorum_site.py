"""A whole round of a made-up site in the quorum suite: its keys, shares, seals, answers and checks are real."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cipherward.crypto.labels import Label, digest, framed
from cipherward.crypto.merkle import leaf_hash, root
from cipherward.crypto.quorum.sealed import Answering, Dealing
from cipherward.crypto.quorum_records import (
    check_answer_key,
    check_share,
    check_update_chunk,
    checkers,
    coverage,
    sealed_root,
    verify_sum_check,
)
from cipherward.crypto.records import Plan
from cipherward.crypto.sealing import SealingKey
from cipherward.crypto.signing import signer_name
from cipherward.crypto.suites.registry import suite
from cipherward.crypto.suites.site_side import one_time_key_side
from cipherward.errors import LateError, VerificationError
from cipherward.evaluation.bench.coordinator.site import LoadSite
from cipherward.evaluation.bench.coordinator.steps import ROUND, Books, Steps
from cipherward.evaluation.bench.coordinator.updates import Update, vector, write_update
from cipherward.proto.v1 import coordinator_pb2 as pb
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.round_pb2 import Acknowledgement, Answer, Attempt, CloseRecord, SumCheck

T = TypeVar("T")
CHECKS_SECONDS = 0.25


class QuorumRound:
    """One site's round. ``exact`` is what the opened sum must be, to the suite's predicted error."""

    def __init__(
        self,
        site: LoadSite,
        books: Books,
        folder: Path,
        exact: NDArray[np.float64],
        threads: ThreadPoolExecutor,
    ) -> None:
        self._site, self._books, self._exact, self._threads = site, books, exact, threads
        self._file = folder / f"{books.name}-{site.name}"
        self._steps = Steps(site, books)
        self._params = books.trust.params
        self._side = one_time_key_side(self._params.suite)
        self._key = SealingKey.generate()
        self._shares: dict[str, bytes] = {}

    async def _aside(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def run(self) -> tuple[int, int]:
        """From the open round to the end of the study; how often this site was late with its acknowledgement and its
        answer (0 or 1 each): once enough have come, a coordinator waits for the others only briefly, and nothing is
        lost by it. Raises VerificationError for whatever is not right."""
        await self._steps.join(round_key=self._key.public())
        plan = await self._steps.plan()
        update = await self._aside(lambda: self._encrypt(plan))
        await self._steps.upload(update.messages(), (update.chunk_count, len(plan.members)))
        await self._steps.commit(update)
        await self._steps.reach(pb.PHASE_ACKNOWLEDGE)
        late_acknowledgement = await _late(self._acknowledge(plan))
        await self._steps.reach(pb.PHASE_UNSEAL, pb.PHASE_RELEASE)
        close, record = await self._steps.closed(plan)
        late_answer = await _late(self._answer(plan, close, record))
        chunks = await self._steps.sum(record)
        await self._check_own_part(plan, close, record, chunks, update)
        await self._steps.reach(pb.PHASE_RELEASE)
        await self._wait_until_covered(plan, close, record)
        opened = await self._open(plan, close, record, chunks)
        # The same bits everywhere, whichever answers came first.
        await self._steps.report(close, digest(Label.MODEL_DIGEST, opened.astype("<f4").tobytes()))
        await self._steps.finished()
        self._file.unlink()
        return late_acknowledgement, late_answer

    def _context(self) -> bytes:
        return framed(Label.PUBLIC_POLYNOMIAL, self._books.trust.digest, self._steps.plan_digest)

    def _dealing(self, plan: Plan, dealer: str, root: bytes) -> Dealing:
        named = f"{self._params.suite}:{self._params.name}"
        manifest = self._books.trust.digest
        return Dealing(manifest, plan.digest, named, plan.threshold, plan.members, dealer, 1, root)

    def _encrypt(self, plan: Plan) -> Update:
        key = self._side.generate_key(self._params, self._site.name.encode())
        with self._side.cipher(key, self._context(), 1) as cipher:
            chunks = list(cipher.encrypt(vector(self._site.number, self._books.length)))
        bare = write_update(self._file, chunks)
        dealing = self._dealing(plan, self._site.name, bare.ciphertext_root)
        public = [join.round_key for join in plan.joins.values()]
        sealed = dealing.seal(public, key.deal(plan.threshold, len(plan.members)))
        return write_update(self._file, chunks, sealed)

    async def _acknowledge(self, plan: Plan) -> None:
        request = pb.GetRecordRequest(study=self._books.name, round=ROUND)
        messages = await self._site.fetch("GetShares", request)
        place = plan.places[self._site.name]

        def open_all() -> None:
            for message in messages:
                commit = check_share(message, self._books.trust, plan, self._site.name)
                dealing = self._dealing(plan, commit.site, commit.ciphertext_root)
                self._shares[commit.site] = dealing.open(place, self._key, message.sealed)

        await self._aside(open_all)
        await self._steps.post("PostAcknowledgement", acknowledgement(self._site, self._books, plan))

    async def _answer(self, plan: Plan, close: bytes, record: CloseRecord) -> None:
        trust = self._books.trust
        answering = Answering(trust.digest, plan.digest, close, plan.members, self._site.name)

        def seal() -> pb.PostAnswerRequest:
            shares = [self._shares[item.site] for item in record.contributions]
            public = [join.round_key for join in plan.joins.values()]
            encrypted, keys = answering.seal(public, self._side.add_shares(self._params, shares))
            answer = Answer(
                manifest_digest=trust.digest,
                plan_digest=plan.digest,
                close_digest=close,
                round=ROUND,
                site=self._site.name,
                encrypted_vector=encrypted,
                key_root=sealed_root(keys),
            )
            signed = self._site.sign(Label.ANSWER, answer)
            return pb.PostAnswerRequest(study=self._books.name, record=signed, sealed_keys=keys)

        await self._site.call("PostAnswer", await self._aside(seal))

    async def _check_own_part(
        self, plan: Plan, close: bytes, record: CloseRecord, chunks: list[bytes], update: Update
    ) -> None:
        """Add up the chunks of the sum that this site is the first to check, with those of its own ``update``."""
        others = [item for item in record.contributions if item.site != self._site.name]
        members, colluders = plan.members, self._books.trust.manifest.colluders
        orders = self._books.once(
            b"order" + close, lambda: [checkers(close, members, index) for index in range(len(chunks))]
        )
        mine = [index for index, order in enumerate(orders) if self._site.name in order[: colluders + 1]]
        own, leaves = {}, []
        for index, chunk in enumerate(update.chunks()):
            leaves.append(leaf_hash(chunk))
            if index in mine:
                own[index] = chunk
        if root(leaves) != update.ciphertext_root:
            raise VerificationError("the update on disk is not the one that was committed")
        with suite(self._params.suite).chunk_adder(self._params) as adder:
            for index in mine:
                request = pb.GetUpdateChunksRequest(
                    study=self._books.name, round=ROUND, indices=[index], without_own=True
                )
                found = await self._site.fetch("GetUpdateChunks", request)
                for message, contribution in zip(found, others, strict=True):
                    check_update_chunk(message, record, contribution)
                added = adder.add(
                    chain([own[index]], (message.data for message in found)), index, self._books.length
                )
                if leaf_hash(added) != leaf_hash(chunks[index]):
                    raise VerificationError(f"chunk {index} of the sum is not the sum of the updates")
        check = SumCheck(
            manifest_digest=self._books.trust.digest,
            close_digest=close,
            round=ROUND,
            site=self._site.name,
            right=mine,
        )
        await self._steps.post("PostSumCheck", self._site.sign(Label.SUM_CHECK, check))

    async def _wait_until_covered(self, plan: Plan, close: bytes, record: CloseRecord) -> None:
        trust, count = self._books.trust, record.sum_chunk_count
        request = pb.GetRecordRequest(study=self._books.name, round=ROUND)
        while True:
            checks = {}
            for signed in await self._site.fetch("GetSumChecks", request):
                name = signer_name(signed)
                checks[name] = verify_sum_check(signed, trust, plan, close, count, name)
            if not coverage(checks, trust.manifest.colluders, count).missing:
                return
            await asyncio.sleep(CHECKS_SECONDS)

    async def _open(
        self, plan: Plan, close: bytes, record: CloseRecord, chunks: list[bytes]
    ) -> NDArray[np.float64]:
        """The sum, by the key that the answers give; VerificationError if it is not the right one."""
        request = pb.GetRecordRequest(study=self._books.name, round=ROUND)
        messages = await self._site.fetch("GetAnswers", request)
        place, contributors = plan.places[self._site.name], len(record.contributions)

        def open_sum() -> NDArray[np.float64]:
            points = {}
            for message in messages:
                answer = check_answer_key(message, self._books.trust, plan, close, self._site.name)
                answering = Answering(self._books.trust.digest, plan.digest, close, plan.members, answer.site)
                points[plan.places[answer.site] + 1] = answering.open(
                    place, self._key, answer.encrypted_vector, message.sealed_key
                )
            combined = next(self._side.combine(self._params, points, plan.threshold, contributors))
            with self._side.cipher(combined.key, self._context(), 1) as cipher:
                return cipher.open_sum(chunks, self._books.length, contributors)

        opened = await self._aside(open_sum)
        error = float(np.abs(opened - self._exact).max())
        if error > self._params.error_bound(contributors):
            raise VerificationError(f"the opened sum is off by {error:.3g}")
        return opened


async def _late(step: Awaitable[None]) -> int:
    try:
        await step
    except LateError:
        return 1
    return 0


def acknowledgement(site: LoadSite, books: Books, plan: Plan) -> Signed:
    """That every share opened."""
    record = Acknowledgement(
        manifest_digest=books.trust.digest,
        plan_digest=plan.digest,
        round=ROUND,
        site=site.name,
        opened=[Attempt(site=name, attempt=1) for name in plan.members],
    )
    return site.sign(Label.ACKNOWLEDGEMENT, record)
