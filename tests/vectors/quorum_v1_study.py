"""A study of five sites with fixed keys, and its records: what the round in ``quorum_v1`` consists of.

Every key is SHA-256 of a name. HPKE draws its own randomness, so what is sealed cannot be made again: it is read
from ``sealed/`` where it is there, and what is missing is made and stored (``Seals``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from google.protobuf.message import Message

from cipherward.crypto import merkle
from cipherward.crypto.labels import Label
from cipherward.crypto.manifest_rules import check_manifest
from cipherward.crypto.records import Plan, StudyTrust, verify_plan
from cipherward.crypto.sealing import SealingKey
from cipherward.crypto.signing import SigningKey, record_digest
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.round_pb2 import Join, PlanRecord, RoundRecord
from cipherward.proto.v1.study_pb2 import (
    CoordinatorEntry,
    Deadlines,
    Manifest,
    MetricsPolicy,
    PlainTraining,
    RosterSite,
    Strategy,
    SuiteEntry,
    TaskEntry,
)

SITES = ("aachen", "basel", "cork", "delft", "evora")
THRESHOLD, COLLUDERS, BOUND = 4, 2, 64.0
LENGTH = 20
CONSORTIUM, STUDY, COORDINATOR = "vectors", "quorum-v1", "hub"
TIME = 1_800_000_000


def fixed(name: str) -> bytes:
    """32 bytes that stand for randomness in these vectors."""
    return hashlib.sha256(f"cipherward quorum_v1 {name}".encode()).digest()


def signing_key(name: str) -> SigningKey:
    """A site's, the coordinator's ("hub") or the consortium's ("root")."""
    return SigningKey.from_bytes(fixed(f"signing key of {name}"))


def sealing_key(name: str) -> SealingKey:
    """From an ML-KEM seed of 64 bytes and an X25519 key of 32."""
    parts = (fixed(f"sealing key of {name}, part {part}") for part in range(3))
    return SealingKey.from_bytes(b"".join(parts))


def round_key_name(site: str, round_number: int) -> str:
    """What ``sealing_key`` takes for a site's key of one round."""
    return f"{site} in round {round_number}"


def by_site(label: Label, record: Message, site: str, key: str = "") -> Signed:
    """Signed in the name of ``site``, by the key of ``key`` where that is another."""
    return signing_key(key or site).sign(label, record, f"spiffe://{CONSORTIUM}/site/{site}")


def by_coordinator(label: Label, record: Message) -> Signed:
    """Signed by the coordinator."""
    return signing_key(COORDINATOR).sign(label, record, f"spiffe://{CONSORTIUM}/coordinator/{COORDINATOR}")


def make_manifest() -> Signed:
    """Five sites, t = 4, c = 2, q32; without DP, which has no part in these vectors."""
    manifest = Manifest(
        consortium=CONSORTIUM, study=STUDY, version=1, first_round=1, rounds=2,
        roster=[
            RosterSite(
                name=site, signing_key=signing_key(site).public(), sealing_key=sealing_key(site).public(),
                tls_key_digest=fixed(f"TLS key of {site}"), weight=1, batch_divisor=1,
            )
            for site in SITES
        ],
        coordinator=CoordinatorEntry(
            name=COORDINATOR, signing_key=signing_key(COORDINATOR).public(),
            tls_key_digest=fixed(f"TLS key of {COORDINATOR}"),
        ),
        task=TaskEntry(name="task", code_digest=fixed("task")),
        initial_weights_digest=fixed("weights"), parameter_count=LENGTH - 1,
        strategy=Strategy(name="fedavg", server_learning_rate=1),
        suite=SuiteEntry(name="quorum", parameters="q32", library="cipherward-quorum 1", bound=BOUND),
        dp_disabled=True,
        plain=PlainTraining(
            steps=1, learning_rate=1, sampling_rate=1, metrics=MetricsPolicy(loss_bound=1, scale=1)
        ),
        minimum_cohort=THRESHOLD, threshold=THRESHOLD, colluders=COLLUDERS, release_to="sites",
        deadlines=Deadlines(join_window=60, upload=60, acknowledge=60, unseal=60, verify=60),
        collective_verification=True, signed_at=TIME,
    )  # fmt: skip
    check_manifest(manifest)
    return signing_key("root").sign(Label.MANIFEST, manifest, "root")


class Round:
    """A round's opening and its plan."""

    def __init__(self, trust: StudyTrust, number: int, members: Sequence[str], transcript: bytes) -> None:
        self.trust, self.number = trust, number
        record = RoundRecord(
            manifest_digest=trust.digest, round=number, model_digest=fixed(f"model {number}"),
            previous_transcript=transcript, opened_at=TIME,
        )  # fmt: skip
        self.opening = by_coordinator(Label.ROUND_RECORD, record)
        self.opened = record_digest(Label.ROUND_RECORD, self.opening)
        self.plan_record = self.make_plan([self.join(site) for site in members])
        self.plan: Plan = verify_plan(self.plan_record, trust, self.opened, number)

    def join(self, site: str, key_of: str = "") -> Signed:
        """With the round key of ``key_of`` where that is another."""
        join = Join(
            manifest_digest=self.trust.digest, round_record_digest=self.opened, round=self.number, site=site,
            round_key=sealing_key(round_key_name(key_of or site, self.number)).public(),
            library=self.trust.manifest.suite.library,
        )  # fmt: skip
        return by_site(Label.JOIN, join, site)

    def make_plan(self, joins: Sequence[Signed]) -> Signed:
        """A plan record over any joins; not verified."""
        record = PlanRecord(
            manifest_digest=self.trust.digest,
            round_record_digest=self.opened,
            round=self.number,
            joins=joins,
        )
        return by_coordinator(Label.PLAN_RECORD, record)


class Seals:
    """Sealed messages: those of a folder, and where there is none yet a new one. Of a list under one root only
    some are stored, of the others the leaf hashes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def one(self, name: str, make: Callable[[], bytes]) -> bytes:
        """The stored bytes, or new ones."""
        path = self._folder / f"{name}.bin"
        if not path.exists():
            path.write_bytes(make())
        return path.read_bytes()

    def leaves(
        self, name: str, receivers: Sequence[str], make: Callable[[], list[bytes]], kept: Sequence[str]
    ) -> list[bytes]:
        """Leaf hashes of one message a receiver, in order; stored are those for ``kept``."""
        path = self._folder / f"{name}.json"
        if not path.exists():
            sealed = make()
            for receiver, message in zip(receivers, sealed, strict=True):
                if receiver in kept:
                    (self._folder / f"{name}-to-{receiver}.bin").write_bytes(message)
            path.write_text(json.dumps([merkle.leaf_hash(message).hex() for message in sealed]) + "\n")
        return [bytes.fromhex(leaf) for leaf in json.loads(path.read_text())]

    def stored(self, name: str) -> bytes:
        """What is there."""
        return (self._folder / f"{name}.bin").read_bytes()
