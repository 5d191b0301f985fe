"""Each rule by which a record is believed: the honest record passes, and one change at a time is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from cipherward.crypto.labels import Label, digest
from cipherward.crypto.records import (
    Plan,
    StudyTrust,
    agreement_needed,
    verify_abort,
    verify_close,
    verify_commit,
    verify_join,
    verify_model_report,
    verify_plan,
    verify_relay,
    verify_round_record,
)
from cipherward.crypto.signing import SigningKey, record_digest
from cipherward.crypto.transcript import transcript_start
from cipherward.errors import VerificationError
from cipherward.ids import Digest
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.round_pb2 import (
    AbortRecord,
    CloseRecord,
    Commit,
    Contribution,
    Join,
    ModelReport,
    PlanRecord,
    RelayItem,
    RoundRecord,
)
from cipherward.proto.v1.study_pb2 import CoordinatorEntry, Manifest, RosterSite, SuiteEntry

SITES = ("cleveland", "hungary", "switzerland", "va")
LIBRARY = "tenseal 0.3.18"


def d(name: str) -> bytes:
    return digest(Label.FILE_DIGEST, name.encode())


@dataclass
class World:
    """A study with real keys, and honest records of its first round."""

    keys: dict[str, SigningKey] = field(
        default_factory=lambda: {name: SigningKey.generate() for name in SITES}
    )
    coordinator: SigningKey = field(default_factory=SigningKey.generate)

    def __post_init__(self) -> None:
        manifest = Manifest(
            consortium="c", study="heart", version=1, first_round=1, rounds=3, minimum_cohort=3, colluders=1,
            roster=[RosterSite(name=name, signing_key=key.public()) for name, key in self.keys.items()],
            coordinator=CoordinatorEntry(name="hub", signing_key=self.coordinator.public()),
            suite=SuiteEntry(name="shared-key", library=LIBRARY, key_maker="cleveland"),
        )  # fmt: skip
        self.trust = StudyTrust(manifest, Digest(d("manifest")))
        self.transcript = transcript_start("heart", self.trust.digest)

    def by_site(self, label: Label, message: object, site: str, key: SigningKey | None = None) -> Signed:
        return (key or self.keys[site]).sign(label, message, f"spiffe://c/site/{site}")  # type: ignore[arg-type]

    def by_coordinator(self, label: Label, message: object, key: SigningKey | None = None) -> Signed:
        return (key or self.coordinator).sign(label, message, "spiffe://c/coordinator/hub")  # type: ignore[arg-type]

    def round_record(self) -> RoundRecord:
        return RoundRecord(
            manifest_digest=self.trust.digest,
            round=1,
            model_digest=d("model"),
            previous_transcript=self.transcript,
        )

    @property
    def opened(self) -> bytes:
        return record_digest(Label.ROUND_RECORD, self.by_coordinator(Label.ROUND_RECORD, self.round_record()))

    def join(self, site: str) -> Join:
        return Join(
            manifest_digest=self.trust.digest, round_record_digest=self.opened, round=1, site=site,
            shared_key_digest=d("key"), library=LIBRARY,
        )  # fmt: skip

    def plan_record(self, sites: tuple[str, ...] = SITES) -> PlanRecord:
        joins = [self.by_site(Label.JOIN, self.join(site), site) for site in sites]
        return PlanRecord(
            manifest_digest=self.trust.digest, round_record_digest=self.opened, round=1, joins=joins
        )

    def plan(self) -> Plan:
        return verify_plan(
            self.by_coordinator(Label.PLAN_RECORD, self.plan_record()), self.trust, self.opened, 1
        )

    def commit(self, site: str) -> Commit:
        return Commit(
            manifest_digest=self.trust.digest, plan_digest=self.plan().digest, round=1, attempt=1, site=site,
            length=30, chunk_count=1, ciphertext_root=d(site), ledger_sequence=2, ledger_head=d("ledger"),
        )  # fmt: skip

    def contribution(self, site: str) -> Contribution:
        commit = self.commit(site)
        return Contribution(
            site=site,
            attempt=1,
            ciphertext_root=commit.ciphertext_root,
            commit=self.by_site(Label.COMMIT, commit, site),
        )

    def close_record(self, sites: tuple[str, ...] = SITES) -> CloseRecord:
        return CloseRecord(
            manifest_digest=self.trust.digest, plan_digest=self.plan().digest, round=1, sum_root=d("sum"),
            sum_chunk_count=1, previous_transcript=self.transcript,
            contributions=[self.contribution(site) for site in sites],
        )  # fmt: skip


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def set_field(**values: object) -> Callable[[object], None]:
    def change(message: object) -> None:
        for name, value in values.items():
            setattr(message, name, value)

    return change


@pytest.mark.parametrize(
    "change",
    [set_field(round=2), set_field(manifest_digest=d("other")), set_field(model_digest=b""),
     set_field(previous_transcript=b"short")],
)  # fmt: skip
def test_round_record(world: World, change: Callable[[object], None]) -> None:
    honest = world.round_record()
    verify_round_record(world.by_coordinator(Label.ROUND_RECORD, honest), world.trust, 1)
    with pytest.raises(VerificationError):
        verify_round_record(
            world.by_coordinator(Label.ROUND_RECORD, honest, SigningKey.generate()), world.trust, 1
        )
    change(honest)
    with pytest.raises(VerificationError):
        verify_round_record(world.by_coordinator(Label.ROUND_RECORD, honest), world.trust, 1)


def test_round_beyond_the_manifest_is_refused(world: World) -> None:
    record = world.round_record()
    record.round = 4
    with pytest.raises(VerificationError, match="not one of the study's rounds"):
        verify_round_record(world.by_coordinator(Label.ROUND_RECORD, record), world.trust, 4)


@pytest.mark.parametrize(
    "change",
    [set_field(site="hungary"), set_field(round=2), set_field(round_record_digest=d("x")),
     set_field(library="tenseal 0.3.16"), set_field(shared_key_digest=b""), set_field(round_key=b"k" * 1216),
     set_field(manifest_digest=d("x"))],
)  # fmt: skip
def test_join(world: World, change: Callable[[object], None]) -> None:
    join = world.join("va")
    verify_join(world.by_site(Label.JOIN, join, "va"), world.trust, world.opened, 1, "va")
    with pytest.raises(VerificationError):  # another site's key
        verify_join(world.by_site(Label.JOIN, join, "hungary"), world.trust, world.opened, 1, "va")
    change(join)
    with pytest.raises(VerificationError):
        verify_join(world.by_site(Label.JOIN, join, "va"), world.trust, world.opened, 1, "va")


def test_plan_refuses_doubles_disorder_small_cohorts_and_strangers(world: World) -> None:
    def check(record: PlanRecord) -> Plan:
        return verify_plan(world.by_coordinator(Label.PLAN_RECORD, record), world.trust, world.opened, 1)

    assert list(check(world.plan_record()).joins) == list(SITES)
    assert list(check(world.plan_record(SITES[1:])).joins) == list(SITES[1:])
    for sites in (SITES[:2], (), ("va", *SITES[:3]), (*SITES, "va")):
        with pytest.raises(VerificationError):
            check(world.plan_record(sites))
    stranger = world.plan_record(SITES[:3])
    key = SigningKey.generate()
    stranger.joins.append(world.by_site(Label.JOIN, world.join("sybil"), "sybil", key))
    with pytest.raises(VerificationError, match="not on the roster"):
        check(stranger)
    renamed = world.plan_record()  # one real site counted under another's name
    renamed.joins[3].signer = "spiffe://c/site/hungary"
    with pytest.raises(VerificationError):
        check(renamed)


def test_plan_refuses_differing_shared_keys(world: World) -> None:
    record = world.plan_record()
    other = world.join("va")
    other.shared_key_digest = d("another key")
    record.joins[3].CopyFrom(world.by_site(Label.JOIN, other, "va"))
    with pytest.raises(VerificationError, match="same shared key"):
        verify_plan(world.by_coordinator(Label.PLAN_RECORD, record), world.trust, world.opened, 1)


@pytest.mark.parametrize(
    "change",
    [set_field(site="hungary"), set_field(plan_digest=d("x")), set_field(attempt=0), set_field(length=0),
     set_field(ciphertext_root=b""), set_field(share_root=d("s")), set_field(ledger_head=b""), set_field(round=2)],
)  # fmt: skip
def test_commit(world: World, change: Callable[[object], None]) -> None:
    plan, commit = world.plan(), world.commit("va")
    verify_commit(world.by_site(Label.COMMIT, commit, "va"), world.trust, plan, "va")
    change(commit)
    with pytest.raises(VerificationError):
        verify_commit(world.by_site(Label.COMMIT, commit, "va"), world.trust, plan, "va")


def test_close_record_refuses_what_was_not_committed(world: World) -> None:
    plan = world.plan()

    def check(record: CloseRecord, transcript: bytes = world.transcript) -> CloseRecord:
        return verify_close(world.by_coordinator(Label.CLOSE_RECORD, record), world.trust, plan, transcript)

    check(world.close_record())
    check(world.close_record(SITES[:3]))
    with pytest.raises(VerificationError, match="transcript"):
        check(world.close_record(), d("another history"))
    for sites in (SITES[:2], (), (*SITES, "va"), ("hungary", "cleveland", "va")):
        with pytest.raises(VerificationError):
            check(world.close_record(sites))
    changes: list[Callable[[CloseRecord], None]] = [
        lambda r: setattr(r.contributions[0], "ciphertext_root", d("swapped")),
        lambda r: setattr(r.contributions[0], "attempt", 2),
        lambda r: setattr(r.contributions[0].commit, "signature", bytes(64)),
        lambda r: setattr(r, "sum_chunk_count", 2),
        lambda r: setattr(r, "sum_root", b""),
        lambda r: setattr(r, "plan_digest", d("other plan")),
        lambda r: r.contributions[0].CopyFrom(r.contributions[1]),
    ]
    for change in changes:
        record = world.close_record()
        change(record)
        with pytest.raises(VerificationError):
            check(record)
    longer = world.commit("va")
    longer.length = 31
    record = world.close_record()
    record.contributions[3].commit.CopyFrom(world.by_site(Label.COMMIT, longer, "va"))
    with pytest.raises(VerificationError, match="length"):
        check(record)


def test_abort_and_report(world: World) -> None:
    abort = AbortRecord(manifest_digest=world.trust.digest, round=1, previous_transcript=world.transcript)
    signed = world.by_coordinator(Label.ABORT_RECORD, abort)
    verify_abort(signed, world.trust, 1, world.transcript)
    with pytest.raises(VerificationError):
        verify_abort(signed, world.trust, 2, world.transcript)
    with pytest.raises(VerificationError):
        verify_abort(signed, world.trust, 1, d("x"))
    report = ModelReport(manifest_digest=world.trust.digest, round=1, site="va", model_digest=d("m"))
    verify_model_report(world.by_site(Label.MODEL_REPORT, report, "va"), world.trust, 1, "va")
    with pytest.raises(VerificationError):
        verify_model_report(world.by_site(Label.MODEL_REPORT, report, "hungary"), world.trust, 1, "hungary")


def test_relay_takes_keys_from_the_maker_only(world: World) -> None:
    def item(sender: str, kind: RelayItem.Kind) -> Signed:
        relay = RelayItem(manifest_digest=world.trust.digest, kind=kind, sender=sender, receiver="va")
        return world.by_site(Label.RELAY, relay, sender)

    verify_relay(item("cleveland", RelayItem.KIND_SHARED_KEY), world.trust, "va")
    verify_relay(item("hungary", RelayItem.KIND_MODEL), world.trust, "va")
    for signed, receiver in (
        (item("hungary", RelayItem.KIND_SHARED_KEY), "va"),
        (item("hungary", RelayItem.KIND_MODEL), "cleveland"),
        (item("hungary", RelayItem.KIND_UNSPECIFIED), "va"),
    ):
        with pytest.raises(VerificationError):
            verify_relay(signed, world.trust, receiver)


def test_agreement_never_follows_the_colluders_or_a_minority() -> None:
    assert agreement_needed(colluders=1, others=3) == 2
    assert agreement_needed(colluders=3, others=4) == 4
    for others in range(1, 20):
        for colluders in range(others):
            needed = agreement_needed(colluders, others)
            assert needed > colluders
            assert 2 * needed > others
