"""Made-up sites: they speak the protocol over mutual TLS with real keys and real encryption, and send what a row
wants. Nothing is checked here that an attacker would not check."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cipherward.crypto import merkle
from cipherward.crypto.labels import Label, digest, framed
from cipherward.crypto.pki.store import Member
from cipherward.crypto.quorum.sealed import Answering, Dealing
from cipherward.crypto.quorum_records import check_answer_key, check_update_chunk, checkers, sealed_root
from cipherward.crypto.records import Plan, StudyTrust, verify_plan
from cipherward.crypto.sealing import SealingKey
from cipherward.crypto.signing import record_digest, verify
from cipherward.crypto.suites.base import KeyLifetime, StudyKey
from cipherward.crypto.suites.payload import Layout
from cipherward.crypto.suites.registry import suite
from cipherward.crypto.suites.site_side import one_time_key_side, site_side
from cipherward.errors import UnavailableError
from cipherward.evaluation.threats.kit.caller import CALL_SECONDS, Caller
from cipherward.evaluation.threats.kit.parties import tree
from cipherward.proto.v1 import coordinator_pb2 as pb
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.round_pb2 import (
    Acknowledgement,
    Answer,
    Attempt,
    CloseRecord,
    Commit,
    Join,
    ModelReport,
    RelayItem,
    SumCheck,
)
from cipherward.site_agent.client.errors import translated
from cipherward.site_agent.training.metrics import METRICS


@dataclass(eq=False)
class Contribution:
    """What a site uploads in a round; rows change it at will."""

    number: int
    plan: Plan
    chunks: list[bytes]
    sealed: list[bytes] = field(default_factory=list)
    attempt: int = 1
    length: int = 0

    def messages(self, study: str, leaves: Sequence[bytes] | None = None) -> Iterator[pb.UploadMessage]:
        """The upload as it is streamed."""
        yield pb.UploadMessage(
            header=pb.UploadHeader(
                study=study, round=self.number, attempt=self.attempt, plan_digest=self.plan.digest
            )
        )
        for index, chunk in enumerate(self.chunks):
            leaf = merkle.leaf_hash(chunk) if leaves is None else leaves[index]
            yield pb.UploadMessage(index=index, data=chunk, leaf_hash=leaf)
        for index, sealed in enumerate(self.sealed):
            yield pb.UploadMessage(share=pb.ShareMessage(sealed=sealed, index=index))


class MadeUpSite(Caller):
    """One site. ``key``: the study's, in the shared-key suite."""

    def __init__(self, member: Member, address: str, trust: StudyTrust, key: StudyKey | None = None) -> None:
        super().__init__(address, member.channel_credentials())
        self.member, self.name, self.trust, self.key = member, member.identity.name, trust, key
        self.params = trust.params
        self.length = Layout(trust.manifest.parameter_count, METRICS).length
        self.one_time = trust.key_lifetime is KeyLifetime.ATTEMPT
        self.round_keys: dict[int, SealingKey] = {}
        self.shares: dict[int, dict[str, bytes]] = {}
        self.plans: dict[int, Plan] = {}

    @property
    def study(self) -> str:
        """Its name."""
        return self.trust.manifest.study

    def sign(self, label: Label, message: Any) -> Signed:
        """A record of this site's."""
        return self.member.signing_key.sign(label, message, str(self.member.identity))

    def post(self, rpc: str, label: Label, message: Any) -> Signed:
        """Sign and post a record."""
        record = self.sign(label, message)
        self.call(rpc, pb.PostRequest(study=self.study, record=record))
        return record

    def until(self, number: int, *phases: pb.Phase.ValueType) -> pb.StudySnapshot:
        """Wait until the study is in that round and one of these phases, or has ended."""
        with translated():
            stream = self.stub.WatchWork(pb.WatchWorkRequest(), timeout=CALL_SECONDS)
            try:
                for one in stream:
                    over = one.state != pb.STUDY_STATE_RUNNING or one.round > number
                    if one.study == self.study and (over or (one.round == number and one.phase in phases)):
                        found: pb.StudySnapshot = one
                        return found
            finally:
                stream.cancel()
        raise UnavailableError("the watch stream ended")

    def record(self, number: int, kind: pb.RecordKind.ValueType) -> Signed:
        """A record of the round."""
        found: Signed = self.call("GetRecord", pb.GetRecordRequest(study=self.study, round=number, kind=kind))
        return found

    # A round, step by step

    def hand_out_key(self) -> None:
        """As the key maker: a sealed key to each site. Nobody opens it: made-up sites have the key already."""
        body = os.urandom(64)
        for receiver in self.trust.sites:
            item = RelayItem(
                kind=RelayItem.KIND_SHARED_KEY,
                manifest_digest=self.trust.digest,
                sender=self.name,
                receiver=receiver,
                content_digest=self._key_digest(),
                sealed_key=os.urandom(1200),
                content_length=len(body),
                body_root=tree([body]),
                chunk_count=1,
            )
            signed = self.sign(Label.RELAY, item)
            parts = [
                pb.RelayMessage(study=self.study, item=signed),
                pb.RelayMessage(study=self.study, index=0, data=body),
            ]
            self.call("PutRelay", iter(parts))

    def _key_digest(self) -> bytes:
        return b"" if self.key is None else self.key.digest(self.trust.digest)

    def joining(self, number: int) -> Join:
        """The join record, unsigned."""
        self.round_keys.setdefault(number, SealingKey.generate())
        opened = self.record(number, pb.RECORD_KIND_ROUND)
        return Join(
            manifest_digest=self.trust.digest,
            round_record_digest=record_digest(Label.ROUND_RECORD, opened),
            round=number,
            site=self.name,
            library=self.params.library,
            round_key=self.round_keys[number].public() if self.one_time else b"",
            shared_key_digest=self._key_digest(),
        )

    def join(self, number: int) -> None:
        """Say that it is ready."""
        self.until(number, pb.PHASE_OPEN)
        self.post("PostJoin", Label.JOIN, self.joining(number))

    def plan(self, number: int) -> Plan:
        """The plan, once it is made."""
        self.until(number, pb.PHASE_UPLOAD)
        opened = record_digest(Label.ROUND_RECORD, self.record(number, pb.RECORD_KIND_ROUND))
        found = verify_plan(self.record(number, pb.RECORD_KIND_PLAN), self.trust, opened, number)
        self.plans[number] = found
        return found

    def context(self, plan: Plan) -> bytes:
        """What the public polynomials follow from."""
        return framed(Label.PUBLIC_POLYNOMIAL, self.trust.digest, plan.digest)

    def _dealing(self, plan: Plan, dealer: str, attempt: int, root: bytes) -> Dealing:
        named = f"{self.params.suite}:{self.params.name}"
        return Dealing(
            self.trust.digest, plan.digest, named, plan.threshold, plan.members, dealer, attempt, root
        )

    def encrypt(
        self,
        number: int,
        plan: Plan,
        vector: NDArray[np.floating[Any]],
        attempt: int = 1,
        edit: Callable[[list[bytes]], list[bytes]] = list,
    ) -> Contribution:
        """A whole upload of that vector; ``edit`` changes the ciphertexts before shares are bound to them."""
        made = Contribution(number, plan, [], attempt=attempt, length=vector.size)
        if not self.one_time:
            if self.key is None:
                raise UnavailableError(f"{self.name} has no key")
            with site_side(self.params.suite).cipher(self.key, b"") as cipher:
                made.chunks = list(cipher.encrypt(vector))
            return made
        side = one_time_key_side(self.params.suite)
        one_time = side.generate_key(self.params, self.name.encode())
        with side.cipher(one_time, self.context(plan), 1) as cipher:
            made.chunks = edit(list(cipher.encrypt(vector)))
        public = [join.round_key for join in plan.joins.values()]
        dealing = self._dealing(plan, self.name, attempt, tree(made.chunks))
        made.sealed = dealing.seal(public, one_time.deal(plan.threshold, len(plan.members)))
        return made

    def upload(self, made: Contribution, leaves: Sequence[bytes] | None = None) -> pb.UploadState:
        """Stream it; nothing is committed."""
        state: pb.UploadState = self.call("Upload", made.messages(self.study, leaves))
        return state

    def commitment(self, made: Contribution) -> Commit:
        """The commit record, unsigned."""
        return Commit(
            manifest_digest=self.trust.digest,
            plan_digest=made.plan.digest,
            round=made.number,
            attempt=made.attempt,
            site=self.name,
            length=made.length,
            chunk_count=len(made.chunks),
            ciphertext_root=tree(made.chunks),
            share_root=sealed_root(made.sealed) if made.sealed else b"",
            ledger_sequence=made.number,
            ledger_head=bytes(32),
        )

    def commit(self, made: Contribution) -> None:
        """Sign for the upload."""
        self.post("PostCommit", Label.COMMIT, self.commitment(made))

    def contribute(self, number: int, vector: NDArray[np.floating[Any]]) -> Contribution:
        """Encrypt, upload and commit under the round's plan."""
        made = self.encrypt(number, self.plans.get(number) or self.plan(number), vector)
        self.upload(made)
        self.commit(made)
        return made

    def acknowledge(self, number: int, plan: Plan) -> None:
        """Open the shares and say so."""
        self.until(number, pb.PHASE_ACKNOWLEDGE)
        place, mine, opened = plan.places[self.name], self.shares.setdefault(number, {}), []
        for message in self.fetch("GetShares", pb.GetRecordRequest(study=self.study, round=number)):
            commit = Commit.FromString(message.commit.payload)
            dealing = self._dealing(plan, commit.site, commit.attempt, commit.ciphertext_root)
            mine[commit.site] = dealing.open(place, self.round_keys[number], message.sealed)
            opened.append(Attempt(site=commit.site, attempt=commit.attempt))
        self.post(
            "PostAcknowledgement",
            Label.ACKNOWLEDGEMENT,
            Acknowledgement(
                manifest_digest=self.trust.digest,
                plan_digest=plan.digest,
                round=number,
                site=self.name,
                opened=opened,
            ),
        )

    def closed(self, number: int) -> tuple[bytes, CloseRecord]:
        """The close record and its digest."""
        self.until(number, pb.PHASE_UNSEAL, pb.PHASE_RELEASE)
        signed = self.record(number, pb.RECORD_KIND_CLOSE)
        # An abort takes the same place.
        key = self.trust.manifest.coordinator.signing_key
        return record_digest(Label.CLOSE_RECORD, signed), verify(signed, Label.CLOSE_RECORD, key, CloseRecord)

    def answer(self, number: int, plan: Plan) -> None:
        """The sum of the shares of U, sealed to every member."""
        close, record = self.closed(number)
        answering = Answering(self.trust.digest, plan.digest, close, plan.members, self.name)
        shares = [self.shares[number][item.site] for item in record.contributions]
        side = one_time_key_side(self.params.suite)
        public = [join.round_key for join in plan.joins.values()]
        encrypted, keys = answering.seal(public, side.add_shares(self.params, shares))
        answer = Answer(
            manifest_digest=self.trust.digest,
            plan_digest=plan.digest,
            close_digest=close,
            round=number,
            site=self.name,
            encrypted_vector=encrypted,
            key_root=sealed_root(keys),
        )
        signed = self.sign(Label.ANSWER, answer)
        self.call("PostAnswer", pb.PostAnswerRequest(study=self.study, record=signed, sealed_keys=keys))

    def vouch(self, number: int, plan: Plan) -> None:
        """Call its part of the sum right, unseen."""
        close, record = self.closed(number)
        colluders, count = self.trust.manifest.colluders, record.sum_chunk_count
        mine = [
            index
            for index in range(count)
            if self.name in checkers(close, plan.members, index)[: colluders + 1]
        ]
        check = SumCheck(
            manifest_digest=self.trust.digest, close_digest=close, round=number, site=self.name, right=mine
        )
        self.post("PostSumCheck", Label.SUM_CHECK, check)

    def check_sum(self, number: int, plan: Plan) -> list[int]:
        """As an honest site: add up every chunk again, sign what was found; the wrong ones."""
        close, record = self.closed(number)
        total, wrong = self.sum_chunks(number), []
        with suite(self.params.suite).chunk_adder(self.params) as adder:
            for index in range(record.sum_chunk_count):
                request = pb.GetUpdateChunksRequest(study=self.study, round=number, indices=[index])
                found = self.fetch("GetUpdateChunks", request)
                for message, contribution in zip(found, record.contributions, strict=True):
                    check_update_chunk(message, record, contribution)
                added = adder.add([message.data for message in found], index, self.length)
                if merkle.leaf_hash(added) != merkle.leaf_hash(total[index]):
                    wrong.append(index)
        check = SumCheck(
            manifest_digest=self.trust.digest,
            close_digest=close,
            round=number,
            site=self.name,
            right=[index for index in range(record.sum_chunk_count) if index not in wrong],
            wrong=wrong,
        )
        self.post("PostSumCheck", Label.SUM_CHECK, check)
        return wrong

    def sum_chunks(self, number: int) -> list[bytes]:
        """The encrypted sum."""
        self.closed(number)
        return [
            chunk.data for chunk in self.fetch("GetSum", pb.GetSumRequest(study=self.study, round=number))
        ]

    def open(self, number: int, plan: Plan) -> NDArray[np.float64]:
        """The sum in clear."""
        chunks = self.sum_chunks(number)
        close, record = self.closed(number)
        contributors = len(record.contributions)
        if not self.one_time:
            if self.key is None:
                raise UnavailableError(f"{self.name} has no key")
            with site_side(self.params.suite).cipher(self.key, b"") as cipher:
                return cipher.open_sum(chunks, self.length, contributors)
        self.until(number, pb.PHASE_RELEASE)
        side, points = one_time_key_side(self.params.suite), {}
        for message in self.fetch("GetAnswers", pb.GetRecordRequest(study=self.study, round=number)):
            answer = check_answer_key(message, self.trust, plan, close, self.name)
            answering = Answering(self.trust.digest, plan.digest, close, plan.members, answer.site)
            points[plan.places[answer.site] + 1] = answering.open(
                plan.places[self.name], self.round_keys[number], answer.encrypted_vector, message.sealed_key
            )
        combined = next(side.combine(self.params, points, plan.threshold, contributors))
        with side.cipher(combined.key, self.context(plan), 1) as cipher:
            return cipher.open_sum(chunks, self.length, contributors)

    def report(self, number: int, model: bytes) -> None:
        """Say which model it has."""
        close, _ = self.closed(number)
        self.post(
            "PostModelReport",
            Label.MODEL_REPORT,
            ModelReport(
                manifest_digest=self.trust.digest,
                close_digest=close,
                round=number,
                site=self.name,
                model_digest=model,
            ),
        )


def finish(sites: Sequence[MadeUpSite], number: int, plan: Plan) -> NDArray[np.float64]:
    """What follows the commits, by all of ``sites``, to the end of the round; the opened sum."""
    if sites[0].one_time:
        for site in sites:
            site.acknowledge(number, plan)
        for site in sites:
            site.answer(number, plan)
            site.vouch(number, plan)
    opened = sites[0].open(number, plan)
    model = digest(Label.MODEL_DIGEST, opened.astype("<f4").tobytes())
    for site in sites:
        site.report(number, model)
    return opened


def vectors(names: Sequence[str], length: int, seed: int) -> dict[str, NDArray[np.float32]]:
    """An update for each site; the last value is the constant 1."""
    rng = np.random.default_rng(seed)  # data, not keys
    made = {name: rng.uniform(-1, 1, length).astype(np.float32) for name in names}
    for vector in made.values():
        vector[-1] = 1.0
    return made


def study_key(trust: StudyTrust) -> StudyKey | None:
    """A fresh key for a study of the shared-key suite; None for others."""
    if trust.key_lifetime is KeyLifetime.ATTEMPT:
        return None
    from cipherward.crypto.suites.site_side import study_key_side

    return study_key_side(trust.params.suite).generate_key(trust.params)


def begin(members: Sequence[Member], address: str, trust: StudyTrust) -> list[MadeUpSite]:
    """All sites, connected; in the shared-key suite with the key handed out, so that round 1 opens."""
    suite(trust.params.suite)
    key = study_key(trust)
    sites = [MadeUpSite(member, address, trust, key) for member in members]
    if key is not None:
        maker = next(site for site in sites if site.name == trust.manifest.suite.key_maker)
        maker.hand_out_key()
    return sites
