"""Round 1 of the study, whole, and what a hostile coordinator or site would like to pass for a part of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from quorum_v1_study import (
    LENGTH,
    SITES,
    THRESHOLD,
    TIME,
    Round,
    Seals,
    by_coordinator,
    by_site,
    fixed,
    make_manifest,
    round_key_name,
    sealing_key,
    signing_key,
)

from cipherward.crypto import merkle
from cipherward.crypto.labels import Label, digest, framed
from cipherward.crypto.quorum.key import QuorumKey
from cipherward.crypto.quorum.params import QuorumParams, parameters
from cipherward.crypto.quorum.public import SUITE
from cipherward.crypto.quorum.sealed import Answering, Dealing
from cipherward.crypto.quorum.shamir import SHARE_BYTES, add_shares
from cipherward.crypto.quorum.site import SITE_SIDE
from cipherward.crypto.records import StudyTrust
from cipherward.crypto.signing import record_digest
from cipherward.crypto.transcript import transcript_next, transcript_start
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.round_pb2 import (
    Acknowledgement,
    Answer,
    Attempt,
    CloseRecord,
    Commit,
    Contribution,
    SumCheck,
)
from cipherward.proto.v1.study_pb2 import Manifest

RECEIVER = "cork"
"""Whose point of view is stored: the shares and the keys of answers that were sealed to it."""
COHORT = ("aachen", "basel", "cork", "evora")
"""U: delft committed too late."""
OTHER_COHORT = ("aachen", "basel", "cork", "delft")
ATTEMPT = 1
SECOND_CLOSE = fixed("close record of round 2")
"""In the place of a digest: that round is not played to its end."""


def total_of(params: QuorumParams, uploads: Sequence[Sequence[bytes]], length: int) -> list[bytes]:
    """The sum's chunks."""
    with SUITE.chunk_adder(params) as adder:
        return [adder.add(chunks, index, length) for index, chunks in enumerate(zip(*uploads, strict=True))]


def opened_units(params: QuorumParams, opened: NDArray[np.float64]) -> NDArray[np.int32]:
    """Opened values in units of 1/D, which they are whole numbers of."""
    return np.asarray(opened * params.scale, dtype="<i4")


def update(params: QuorumParams, site: str) -> NDArray[np.float32]:
    """Corners first: the bound, single units, ties of the rounding; the check constant 1.0 last."""
    unit = 1 / params.scale
    corners = [params.bound, -params.bound, unit, -unit, 0.5 * unit, 1.5 * unit, -2.5 * unit, 0.0]
    rest = [(SITES.index(site) + 1) * (j - 5) / 7 for j in range(LENGTH - len(corners) - 1)]
    return np.array([*corners, *rest, 1.0], dtype=np.float32)


@dataclass
class Dealt:
    """What one site contributes."""

    key: QuorumKey
    update: NDArray[np.float32]
    chunks: list[bytes]
    shares: list[bytes]
    commit: Commit
    signed: Signed


class Writer:
    """Makes the records of round 1 and stores them, as the bytes of their ``Signed``."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seals = folder, Seals(folder / "sealed")
        (folder / "records").mkdir(exist_ok=True)
        signed = self.put("manifest", make_manifest())
        manifest = Manifest.FromString(signed.payload)
        self.trust = StudyTrust(manifest, record_digest(Label.MANIFEST, signed))
        self.transcript = transcript_start(manifest.study, self.trust.digest)
        self.round = Round(self.trust, 1, SITES, self.transcript)
        self.plan = self.round.plan
        self.round_keys = [join.round_key for join in self.plan.joins.values()]
        self.bind: dict[str, Any] = {"manifest_digest": self.trust.digest, "round": 1}
        self.context = framed(Label.PUBLIC_POLYNOMIAL, self.trust.digest, self.plan.digest)
        self.params = parameters("q32", manifest.suite.bound, len(SITES))
        self.inclusion: dict[str, list[str]] = {}

    def put(self, name: str, signed: Signed) -> Signed:
        """Store a record."""
        (self.folder / "records" / f"{name}.bin").write_bytes(signed.SerializeToString(deterministic=True))
        return signed

    def prove(self, name: str, leaves: Sequence[bytes], index: int) -> None:
        """Keep an inclusion proof."""
        self.inclusion[name] = [node.hex() for node in merkle.prove(leaves, index)]

    def deal(self, site: str) -> Dealt:
        """Key, upload, sealed shares and commit of one site."""
        vector = update(self.params, site)
        of_update = digest(Label.FILE_DIGEST, vector.astype("<f4").tobytes())
        named = (self.trust.digest, self.plan.digest, site.encode(), ATTEMPT.to_bytes(4, "big"), of_update)
        key = QuorumKey(self.params, fixed(f"randomness of {site}"), framed(Label.ATTEMPT_KEY, *named))
        chunks = list(SITE_SIDE.cipher(key, self.context).encrypt(vector))
        (self.folder / f"round-{site}.bin").write_bytes(b"".join(chunks))
        root = merkle.root([merkle.leaf_hash(chunk) for chunk in chunks])
        dealing = Dealing(
            self.trust.digest, self.plan.digest, "quorum:q32", THRESHOLD, SITES, site, ATTEMPT, root
        )
        shares = key.deal(THRESHOLD, len(SITES))
        kept = {"aachen": (RECEIVER, "basel")}.get(site, (RECEIVER,))
        leaves = self.seals.leaves(
            f"share-{site}", SITES, lambda: dealing.seal(self.round_keys, shares), kept
        )
        for receiver in kept:
            self.prove(f"share-{site}-to-{receiver}", leaves, SITES.index(receiver))
        if site == "aachen":
            zeros = [bytes(SHARE_BYTES)] * len(SITES)
            # What the coordinator can seal in a dealer's name: everything that goes into it is public.
            self.seals.one(
                "share-forged", lambda: dealing.seal(self.round_keys, zeros)[SITES.index(RECEIVER)]
            )
        commit = Commit(
            **self.bind, plan_digest=self.plan.digest, attempt=ATTEMPT, site=site, length=LENGTH,
            chunk_count=len(chunks), ciphertext_root=root, share_root=merkle.root(leaves),
            ledger_sequence=1, ledger_head=fixed(f"ledger of {site}"),
        )  # fmt: skip
        signed = self.put(f"commit-{site}", by_site(Label.COMMIT, commit, site))
        return Dealt(key, vector, chunks, shares, commit, signed)

    def close(self, name: str, dealt: Sequence[Dealt], roots: dict[str, bytes] | None = None) -> Signed:
        """The close record over these contributions; ``roots``: listed instead of what was committed."""
        total = total_of(self.params, [one.chunks for one in dealt], LENGTH)
        record = CloseRecord(
            **self.bind, plan_digest=self.plan.digest, sum_chunk_count=len(total), closed_at=TIME,
            sum_root=merkle.root([merkle.leaf_hash(chunk) for chunk in total]),
            previous_transcript=self.transcript,
            contributions=[
                Contribution(
                    site=one.commit.site, attempt=ATTEMPT, share_root=one.commit.share_root,
                    ciphertext_root=(roots or {}).get(one.commit.site, one.commit.ciphertext_root),
                    commit=one.signed,
                )
                for one in dealt
            ],
        )  # fmt: skip
        return self.put(name, by_coordinator(Label.CLOSE_RECORD, record))

    def acknowledge(self) -> None:
        """The receiver's: all five opened."""
        record = Acknowledgement(
            **self.bind, plan_digest=self.plan.digest, site=RECEIVER,
            opened=[Attempt(site=site, attempt=ATTEMPT) for site in SITES],
        )  # fmt: skip
        self.put("acknowledgement", by_site(Label.ACKNOWLEDGEMENT, record, RECEIVER))

    def answer(self, site: str, vector: bytes, close_digest: bytes) -> None:
        """The answer of one member, sealed once and kept."""
        answering = Answering(self.trust.digest, self.plan.digest, close_digest, SITES, site)

        def seal() -> list[bytes]:
            encrypted, keys = answering.seal(self.round_keys, vector)
            self.seals.one(f"answer-{site}", lambda: encrypted)
            return keys

        leaves = self.seals.leaves(f"answer-key-{site}", SITES, seal, (RECEIVER,))
        self.prove(f"answer-key-{site}-to-{RECEIVER}", leaves, SITES.index(RECEIVER))
        record = Answer(
            **self.bind, plan_digest=self.plan.digest, close_digest=close_digest, site=site,
            encrypted_vector=self.seals.stored(f"answer-{site}"), key_root=merkle.root(leaves),
        )  # fmt: skip
        self.put(f"answer-{site}", by_site(Label.ANSWER, record, site))
        if site == "aachen":
            self.seals.one(
                "answer-key-forged",
                lambda: answering.seal(self.round_keys, vector)[1][SITES.index(RECEIVER)],
            )
            record.encrypted_vector = record.encrypted_vector[:-1]
            self.put("answer-truncated", by_site(Label.ANSWER, record, site))

    def check(self, name: str, site: str, close_digest: bytes, key: str = "", **changed: Any) -> None:
        """A signed sum check."""
        fields = self.bind | {"site": site, "close_digest": close_digest, "right": [0, 1]} | changed
        self.put(name, by_site(Label.SUM_CHECK, SumCheck(**fields), site, key))


def make_round(folder: Path) -> dict[str, Any]:
    """Write round 1, what there is of round 2, and the records that are refused; returns the index."""
    writer = Writer(folder)
    dealt = {site: writer.deal(site) for site in SITES}
    cohort = [dealt[site] for site in COHORT]
    closed = record_digest(Label.CLOSE_RECORD, writer.close("close", cohort))
    total = total_of(writer.params, [one.chunks for one in cohort], LENGTH)
    (folder / "round-sum.bin").write_bytes(b"".join(total))
    writer.acknowledge()
    answers = [add_shares([one.shares[j] for one in cohort]) for j in range(len(SITES))]
    for site, vector in zip(SITES, answers, strict=True):
        writer.answer(site, vector, closed)
    for site in COHORT[:3]:
        writer.check(f"check-{site}", site, closed)
    combined = next(SITE_SIDE.combine(writer.params, dict(enumerate(answers, 1)), THRESHOLD, len(cohort)))
    with SITE_SIDE.cipher(combined.key, writer.context) as cipher:
        opened = opened_units(writer.params, cipher.open_sum(total, LENGTH, len(cohort)))
    second = make_second_round(writer, closed)
    make_refused(writer, dealt, closed, second)
    for one in (writer.round, second):
        writer.put(f"round-{one.number}", one.opening)
        writer.put(f"plan-{one.number}", one.plan_record)
    return {
        "root_key": signing_key("root").public().hex(),
        "receiver": RECEIVER,
        "receiver_secret": sealing_key(round_key_name(RECEIVER, 1)).to_bytes().hex(),
        "manifest_digest": writer.trust.digest.hex(),
        "plan_digest": writer.plan.digest.hex(),
        "close_digest": closed.hex(),
        "second_close_digest": SECOND_CLOSE.hex(),
        "transcript": writer.transcript.hex(),
        "threshold": THRESHOLD,
        "members": SITES,
        "cohort": COHORT,
        "length": LENGTH,
        "scale": writer.params.scale,
        "zero_elements": writer.params.zero_elements,
        "updates": {site: one.update.astype(np.float64).tolist() for site, one in dealt.items()},
        "randomness": {site: fixed(f"randomness of {site}").hex() for site in SITES},
        "opened": opened.tolist(),
        "inclusion": writer.inclusion,
    }


def make_second_round(writer: Writer, closed: bytes) -> Round:
    """Without evora: its opening, its plan, one commit and one check."""
    transcript = transcript_next(writer.transcript, closed)
    second = Round(writer.trust, 2, OTHER_COHORT, transcript)
    commit = Commit(
        manifest_digest=writer.trust.digest, round=2, plan_digest=second.plan.digest, attempt=1,
        site="aachen", length=LENGTH, chunk_count=2, ciphertext_root=fixed("ciphertexts"),
        share_root=fixed("shares"), ledger_sequence=2, ledger_head=fixed("ledger"),
    )  # fmt: skip
    writer.put("commit-aachen-2", by_site(Label.COMMIT, commit, "aachen"))
    for site in ("delft", "evora"):
        writer.check(f"check-{site}-2", site, SECOND_CLOSE, round=2)
    return second


def make_refused(writer: Writer, dealt: dict[str, Dealt], closed: bytes, second: Round) -> None:
    """Records that are signed by whoever would gain, and that nobody may believe."""
    first, commit = writer.round, dealt["aachen"].commit
    joins = {site: first.join(site) for site in SITES}
    honest = list(joins.values())
    plans = {
        "plan-other": honest[:-1],
        "plan-duplicate-member": [honest[0], *honest],
        "plan-duplicate-key": [honest[0], first.join("basel", key_of="aachen"), *honest[2:]],
    }
    for name, named in plans.items():
        writer.put(name, first.make_plan(named))
    writer.put("plan-2-old-joins", second.make_plan(honest[:-1]))

    writer.put("commit-other-key", by_site(Label.COMMIT, commit, "aachen", key="basel"))
    writer.put("commit-other-label", by_site(Label.JOIN, commit, "aachen"))
    unbound = Commit.FromString(dealt["aachen"].signed.payload)
    unbound.ciphertext_root = dealt["basel"].commit.ciphertext_root
    writer.put("commit-other-ciphertexts", by_site(Label.COMMIT, unbound, "aachen"))

    other = writer.close("close-other", [dealt[site] for site in OTHER_COHORT])
    cohort = [dealt[site] for site in COHORT]
    writer.close("close-other-root", cohort, {"basel": commit.ciphertext_root})
    writer.close("close-duplicate-member", [cohort[0], *cohort])

    writer.check("check-other-close", "basel", record_digest(Label.CLOSE_RECORD, other))
    writer.check("check-other-key", "basel", closed, key="cork")
    writer.check("check-stranger", "zurich", closed)
    writer.check("check-beyond", "basel", closed, right=[0, 1, 2])
    writer.check("check-both", "basel", closed, wrong=[1])
