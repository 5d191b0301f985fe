"""Members, coordinator and manifest in one process: real keys, records, shares and ciphertexts, and no agents.

Everybody here is honest. What an adversary does, it does with the parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cipherward.crypto import merkle
from cipherward.crypto.labels import Label, digest, framed
from cipherward.crypto.manifest_rules import colluders_withstood, least_threshold
from cipherward.crypto.quorum.sealed import Answering, Dealing
from cipherward.crypto.quorum_records import (
    check_answer_key,
    check_share,
    sealed_root,
    verify_acknowledgement,
)
from cipherward.crypto.records import (
    StudyTrust,
    verify_close,
    verify_commit,
    verify_plan,
    verify_round_record,
)
from cipherward.crypto.sealing import SealingKey
from cipherward.crypto.signing import SigningKey, record_digest
from cipherward.crypto.suites.base import Combined, SecretKey
from cipherward.crypto.suites.registry import suite
from cipherward.crypto.suites.site_side import one_time_key_side
from cipherward.ids import Digest
from cipherward.proto.v1 import coordinator_pb2 as cp
from cipherward.proto.v1 import round_pb2 as rp
from cipherward.proto.v1 import study_pb2 as sp
from cipherward.proto.v1.common_pb2 import Signed

SUITE, SITE = suite("quorum"), one_time_key_side("quorum")
HUB = "hub"
Who = tuple[str, ...]


def leaves(pieces: Iterable[bytes]) -> list[Digest]:
    """Merkle leaves."""
    return [merkle.leaf_hash(piece) for piece in pieces]


def tree(pieces: Iterable[bytes]) -> Digest:
    """The Merkle root."""
    return merkle.root(leaves(pieces))


def prove(pieces: Sequence[bytes], index: int) -> list[Digest]:
    """That a piece is under the root."""
    return merkle.prove(leaves(pieces), index)


def contribution(signed: Signed) -> rp.Contribution:
    """What a close record says of the update that this commit is for."""
    commit = rp.Commit.FromString(signed.payload)
    return rp.Contribution(
        site=commit.site,
        attempt=commit.attempt,
        ciphertext_root=commit.ciphertext_root,
        share_root=commit.share_root,
        commit=signed,
    )


@cache
def _signing_key(name: str) -> SigningKey:
    return SigningKey.generate()


class Parties:
    """n sites of one study. The threshold and the rest of rule 4 follow from n where nothing else is said."""

    def __init__(
        self,
        count: int,
        *,
        length: int,
        threshold: int | None = None,
        parameters: str = "q32",
        bound: float = 64.0,
    ) -> None:
        self.names = tuple(f"site-{index + 1}" for index in range(count))
        t = least_threshold(count) if threshold is None else threshold
        c = max(0, colluders_withstood(t, count))
        self.params = SUITE.parameters(parameters, bound, count)
        self.length = length
        entry = sp.SuiteEntry(name="quorum", parameters=parameters, library=self.params.library, bound=bound)
        manifest = sp.Manifest(
            consortium="heart",
            study="attacked",
            version=1,
            first_round=1,
            roster=[sp.RosterSite(name=name, signing_key=_signing_key(name).public()) for name in self.names],
            coordinator=sp.CoordinatorEntry(name=HUB, signing_key=_signing_key(HUB).public()),
            rounds=9,
            suite=entry,
            minimum_cohort=max(t, c + 2),
            threshold=t,
            colluders=c,
            collective_verification=True,
        )
        self.trust = StudyTrust(manifest, digest(Label.MANIFEST, manifest.SerializeToString()))

    def sign(self, name: str, label: Label, message: Any) -> Signed:
        """A record of that member's."""
        return _signing_key(name).sign(label, message, f"heart/site/{name}")

    def add(self, uploads: Sequence[Sequence[bytes]]) -> list[bytes]:
        """The sum of updates, each a list of chunks."""
        with SUITE.chunk_adder(self.params) as adder:
            return [
                adder.add(column, index, self.length)
                for index, column in enumerate(zip(*uploads, strict=True))
            ]


@dataclass(eq=False)
class Upload:
    """What a site hands over under a plan."""

    chunks: list[bytes]
    sealed: list[bytes]
    commit: Signed
    shares: list[bytes]  # as dealt; the dealer's own secret
    key: Any


class Round:
    """One round up to its plan, and then what each member does, computed once."""

    def __init__(
        self, parties: Parties, members: Sequence[str], number: int = 1, transcript: bytes = bytes(32)
    ) -> None:
        self.parties, self.number, self.transcript = parties, number, transcript
        trust = parties.trust
        opening = rp.RoundRecord(
            manifest_digest=trust.digest,
            round=number,
            model_digest=bytes(32),
            previous_transcript=transcript,
        )
        signed = parties.sign(HUB, Label.ROUND_RECORD, opening)
        verify_round_record(signed, trust, number)
        opened = record_digest(Label.ROUND_RECORD, signed)
        self.round_keys = {name: SealingKey.generate() for name in members}
        self.joins = [
            parties.sign(
                name,
                Label.JOIN,
                rp.Join(
                    manifest_digest=trust.digest,
                    round_record_digest=opened,
                    round=number,
                    site=name,
                    round_key=self.round_keys[name].public(),
                    library=parties.params.library,
                ),
            )
            for name in members
        ]
        record = rp.PlanRecord(
            manifest_digest=trust.digest, round_record_digest=opened, round=number, joins=self.joins
        )
        self.plan = verify_plan(parties.sign(HUB, Label.PLAN_RECORD, record), trust, opened, number)
        self.uploads: dict[str, Upload] = {}
        self.trained: dict[str, NDArray[np.float32]] = {}
        self._shares: dict[tuple[str, str], bytes] = {}
        self._answers: dict[tuple[str, Who], tuple[Signed, list[bytes]]] = {}
        self._closes: dict[Who, Digest] = {}
        self._sums: dict[Who, list[bytes]] = {}

    @property
    def members(self) -> Who:
        """J."""
        return self.plan.members

    @cached_property
    def context(self) -> bytes:
        """What the public polynomials follow from."""
        return framed(Label.PUBLIC_POLYNOMIAL, self.parties.trust.digest, self.plan.digest)

    @cached_property
    def public_keys(self) -> list[bytes]:
        """Round keys, in J's order."""
        return [join.round_key for join in self.plan.joins.values()]

    def dealing(self, name: str, root: bytes, attempt: int = 1) -> Dealing:
        """The context of that dealer's shares."""
        entry = self.parties.trust.manifest.suite
        return Dealing(
            manifest_digest=self.parties.trust.digest,
            plan_digest=self.plan.digest,
            suite=f"{entry.name}:{entry.parameters}",
            threshold=self.plan.threshold,
            members=self.members,
            dealer=name,
            attempt=attempt,
            ciphertext_root=root,
        )

    def encrypt(self, name: str, vector: NDArray[Any], *, attempt: int = 1) -> Upload:
        """A fresh key, the chunks, sealed shares and a signed commit."""
        parties, plan = self.parties, self.plan
        hedge = framed(Label.ATTEMPT_KEY, plan.digest, name.encode(), bytes([attempt]), vector.tobytes())
        key = SITE.generate_key(parties.params, hedge)
        with SITE.cipher(key, self.context, threads=1) as cipher:
            chunks = list(cipher.encrypt(vector))
        shares = key.deal(plan.threshold, len(self.members))
        sealed = self.dealing(name, tree(chunks), attempt).seal(self.public_keys, shares)
        commit = rp.Commit(
            manifest_digest=parties.trust.digest,
            plan_digest=plan.digest,
            round=self.number,
            attempt=attempt,
            site=name,
            length=vector.size,
            chunk_count=len(chunks),
            ciphertext_root=tree(chunks),
            share_root=sealed_root(sealed),
            ledger_head=bytes(32),
        )
        return Upload(chunks, sealed, parties.sign(name, Label.COMMIT, commit), shares, key)

    def upload(self, name: str, vector: NDArray[Any]) -> Upload:
        """The site's one upload of the round, its commit verified."""
        if name not in self.uploads:
            self.uploads[name] = self.encrypt(name, vector)
            verify_commit(self.uploads[name].commit, self.parties.trust, self.plan, name)
        return self.uploads[name]

    def share_message(self, dealer: str, receiver: str) -> cp.ShareMessage:
        """As the coordinator hands it out."""
        upload, place = self.uploads[dealer], self.plan.places[receiver]
        return cp.ShareMessage(
            sealed=upload.sealed[place],
            index=place,
            inclusion=prove(upload.sealed, place),
            commit=upload.commit,
        )

    def opened_share(self, dealer: str, receiver: str) -> bytes:
        """Checked and opened as the receiver would."""
        if (dealer, receiver) not in self._shares:
            message = self.share_message(dealer, receiver)
            commit = check_share(message, self.parties.trust, self.plan, receiver)
            dealing = self.dealing(dealer, commit.ciphertext_root, commit.attempt)
            self._shares[dealer, receiver] = dealing.open(
                message.index, self.round_keys[receiver], message.sealed
            )
        return self._shares[dealer, receiver]

    def acknowledgement(self, member: str, dealers: Iterable[str]) -> rp.Acknowledgement:
        """After opening the shares of ``dealers``."""
        dealers = list(dealers)
        for dealer in dealers:
            self.opened_share(dealer, member)
        record = rp.Acknowledgement(
            manifest_digest=self.parties.trust.digest,
            plan_digest=self.plan.digest,
            round=self.number,
            site=member,
            opened=[rp.Attempt(site=dealer, attempt=1) for dealer in dealers],
        )
        signed = self.parties.sign(member, Label.ACKNOWLEDGEMENT, record)
        return verify_acknowledgement(signed, self.parties.trust, self.plan, member)

    def total(self, who: Who) -> list[bytes]:
        """The encrypted sum over ``who``."""
        if who not in self._sums:
            self._sums[who] = self.parties.add([self.uploads[name].chunks for name in who])
        return self._sums[who]

    def close(self, who: Who) -> Digest:
        """The digest of the close record over U, verified as every member would."""
        if who not in self._closes:
            total = self.total(who)
            record = rp.CloseRecord(
                manifest_digest=self.parties.trust.digest,
                plan_digest=self.plan.digest,
                round=self.number,
                contributions=[contribution(self.uploads[name].commit) for name in who],
                sum_root=tree(total),
                sum_chunk_count=len(total),
                previous_transcript=self.transcript,
            )
            signed = self.parties.sign(HUB, Label.CLOSE_RECORD, record)
            verify_close(signed, self.parties.trust, self.plan, self.transcript)
            self._closes[who] = record_digest(Label.CLOSE_RECORD, signed)
        return self._closes[who]

    def answering(self, name: str, close: bytes) -> Answering:
        """The context of that member's answer."""
        trust = self.parties.trust
        return Answering(trust.digest, self.plan.digest, close, self.members, name)

    def answer(self, name: str, who: Who) -> tuple[Signed, list[bytes]]:
        """The signed answer about U, and the keys sealed to each member."""
        if (name, who) not in self._answers:
            close = self.close(who)
            vector = SITE.add_shares(self.parties.params, [self.opened_share(one, name) for one in who])
            encrypted, sealed = self.answering(name, close).seal(self.public_keys, vector)
            record = rp.Answer(
                manifest_digest=self.parties.trust.digest,
                plan_digest=self.plan.digest,
                close_digest=close,
                round=self.number,
                site=name,
                encrypted_vector=encrypted,
                key_root=sealed_root(sealed),
            )
            self._answers[name, who] = self.parties.sign(name, Label.ANSWER, record), sealed
        return self._answers[name, who]

    def opened_answer(self, name: str, who: Who, receiver: str) -> bytes:
        """What ``receiver`` learns from the answer: the sum of the shares of U at ``name``'s point."""
        signed, sealed = self.answer(name, who)
        place, close = self.plan.places[receiver], self.close(who)
        message = cp.AnswerMessage(record=signed, sealed_key=sealed[place], inclusion=prove(sealed, place))
        record = check_answer_key(message, self.parties.trust, self.plan, close, receiver)
        key = self.round_keys[receiver]
        return self.answering(name, close).open(place, key, record.encrypted_vector, message.sealed_key)

    def key_of_sum(
        self, who: Who, members: Iterable[str], receiver: str, threshold: int | None = None
    ) -> Combined:
        """The likeliest ``Combined`` from the answers of ``members`` as ``receiver`` opens them."""
        answers = {self.plan.places[name] + 1: self.opened_answer(name, who, receiver) for name in members}
        return next(SITE.combine(self.parties.params, answers, threshold or self.plan.threshold, len(who)))

    def open_sum(self, who: Who, members: Iterable[str], receiver: str) -> NDArray[np.float64]:
        """What ``receiver`` makes of the sum with the answers of ``members``."""
        combined = self.key_of_sum(who, members, receiver)
        return self.open_with(combined.key, self.total(who), len(who))

    def open_with(self, key: SecretKey, chunks: Iterable[bytes], contributors: int) -> NDArray[np.float64]:
        """Open with a key of the sum."""
        with SITE.cipher(key, self.context, threads=1) as cipher:
            return cipher.open_sum(chunks, self.parties.length, contributors)


def vectors(
    names: Iterable[str], length: int, seed: int, bound: float = 1.0
) -> dict[str, NDArray[np.float32]]:
    """An update for each site, from a seed."""
    rng = np.random.default_rng(seed)
    return {name: rng.uniform(-bound, bound, length).astype(np.float32) for name in names}
