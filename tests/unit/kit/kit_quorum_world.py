"""A quorum study's records, made by hand: each honest, for tests to change."""

from __future__ import annotations

import os
from typing import Any

from cipherward.crypto import merkle
from cipherward.crypto.labels import Label, digest
from cipherward.crypto.quorum_records import (
    ENCRYPTED_VECTOR_BYTES,
    SEALED_KEY_BYTES,
    SEALED_SHARE_BYTES,
    sealed_root,
)
from cipherward.crypto.records import Plan, StudyTrust, verify_plan
from cipherward.crypto.sealing import SealingKey
from cipherward.crypto.signing import SigningKey, record_digest
from cipherward.crypto.suites.registry import suite
from cipherward.crypto.transcript import transcript_start
from cipherward.ids import Digest
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.coordinator_pb2 import AnswerMessage, ShareMessage
from cipherward.proto.v1.round_pb2 import (
    Acknowledgement,
    Answer,
    Attempt,
    CloseRecord,
    Commit,
    Contribution,
    Join,
    PlanRecord,
    SumCheck,
)
from cipherward.proto.v1.study_pb2 import CoordinatorEntry, Manifest, RosterSite, SuiteEntry

PARAMS = suite("quorum").parameters("q32", 4.0, 7)
CHUNKS = [os.urandom(40) for _ in range(5)]


def d(name: str) -> bytes:
    return digest(Label.FILE_DIGEST, name.encode())


class World:
    """A quorum study of seven sites, five of which joined round 1: t = 5 of the manifest."""

    roster = ("adam", "bert", "cora", "dora", "emil", "fred", "gina")
    sites = ("adam", "cora", "dora", "emil", "gina")

    def __init__(self, threshold: int = 5, cohort: int = 5, colluders: int = 2) -> None:
        self.keys = {name: SigningKey.generate() for name in self.roster}
        self.coordinator = SigningKey.generate()
        manifest = Manifest(
            consortium="c", study="heart", version=1, first_round=1, rounds=3,
            minimum_cohort=cohort, threshold=threshold, colluders=colluders,
            roster=[RosterSite(name=name, signing_key=key.public()) for name, key in self.keys.items()],
            coordinator=CoordinatorEntry(name="hub", signing_key=self.coordinator.public()),
            suite=SuiteEntry(name="quorum", parameters="q32", library=PARAMS.library, bound=4.0),
        )  # fmt: skip
        self.trust = StudyTrust(manifest, Digest(d("manifest")))
        self.transcript = transcript_start("heart", self.trust.digest)
        self.round_keys = {name: SealingKey.generate().public() for name in self.roster}
        self.plan = self.verified_plan(self.sites)
        self.shares = {name: [os.urandom(SEALED_SHARE_BYTES) for _ in self.sites] for name in self.sites}
        self.sealed_keys = {name: [os.urandom(SEALED_KEY_BYTES) for _ in self.sites] for name in self.sites}
        self.close_digest = record_digest(Label.CLOSE_RECORD, self.signed_close(self.close_record()))

    def sign(self, label: Label, message: Any, site: str, key: SigningKey | None = None) -> Signed:
        return (key or self.keys[site]).sign(label, message, f"spiffe://c/site/{site}")

    def join(self, site: str) -> Join:
        return Join(
            manifest_digest=self.trust.digest, round_record_digest=d("opened"), round=1, site=site,
            round_key=self.round_keys[site], library=PARAMS.library,
        )  # fmt: skip

    def verified_plan(self, sites: tuple[str, ...]) -> Plan:
        joins = [self.sign(Label.JOIN, self.join(site), site) for site in sites]
        record = PlanRecord(
            manifest_digest=self.trust.digest, round_record_digest=d("opened"), round=1, joins=joins
        )
        signed = self.coordinator.sign(Label.PLAN_RECORD, record, "spiffe://c/coordinator/hub")
        return verify_plan(signed, self.trust, d("opened"), 1)

    def commit(self, site: str) -> Commit:
        return Commit(
            manifest_digest=self.trust.digest, plan_digest=self.plan.digest, round=1, attempt=1, site=site,
            length=30, chunk_count=len(CHUNKS), ciphertext_root=sealed_root(CHUNKS),
            share_root=sealed_root(self.shares[site]), ledger_sequence=1, ledger_head=d("ledger"),
        )  # fmt: skip

    def share(self, dealer: str, receiver: str) -> ShareMessage:
        place, leaves = self.plan.places[receiver], [merkle.leaf_hash(one) for one in self.shares[dealer]]
        return ShareMessage(
            sealed=self.shares[dealer][place], index=place, inclusion=merkle.prove(leaves, place),
            commit=self.sign(Label.COMMIT, self.commit(dealer), dealer),
        )  # fmt: skip

    def acknowledgement(self, site: str, bad: str = "") -> Acknowledgement:
        dealers = [Attempt(site=name, attempt=1) for name in self.sites]
        return Acknowledgement(
            manifest_digest=self.trust.digest, plan_digest=self.plan.digest, round=1, site=site,
            opened=[one for one in dealers if one.site != bad],
            unopenable=[one for one in dealers if one.site == bad],
        )  # fmt: skip

    def close_record(self, sites: tuple[str, ...] = sites) -> CloseRecord:
        commits = [self.commit(site) for site in sites]
        return CloseRecord(
            manifest_digest=self.trust.digest, plan_digest=self.plan.digest, round=1, sum_root=d("sum"),
            sum_chunk_count=len(CHUNKS), previous_transcript=self.transcript,
            contributions=[
                Contribution(
                    site=one.site, attempt=1, ciphertext_root=one.ciphertext_root,
                    share_root=one.share_root, commit=self.sign(Label.COMMIT, one, one.site),
                )
                for one in commits
            ],
        )  # fmt: skip

    def signed_close(self, record: CloseRecord) -> Signed:
        return self.coordinator.sign(Label.CLOSE_RECORD, record, "spiffe://c/coordinator/hub")

    def answer(self, site: str) -> Answer:
        return Answer(
            manifest_digest=self.trust.digest, plan_digest=self.plan.digest, close_digest=self.close_digest,
            round=1, site=site, encrypted_vector=bytes(ENCRYPTED_VECTOR_BYTES),
            key_root=sealed_root(self.sealed_keys[site]),
        )  # fmt: skip

    def answer_message(self, site: str, receiver: str) -> AnswerMessage:
        place, leaves = self.plan.places[receiver], [merkle.leaf_hash(one) for one in self.sealed_keys[site]]
        return AnswerMessage(
            record=self.sign(Label.ANSWER, self.answer(site), site),
            sealed_key=self.sealed_keys[site][place], inclusion=merkle.prove(leaves, place),
        )  # fmt: skip

    def sum_check(self, site: str, right: Any, wrong: Any = ()) -> SumCheck:
        return SumCheck(
            manifest_digest=self.trust.digest, close_digest=self.close_digest, round=1, site=site,
            right=right, wrong=wrong,
        )  # fmt: skip
