"""The rules by which a site or an auditor believes a record of a round. The coordinator applies the same ones
to what sites post, so that a record it accepts is one that every site accepts.

Each ``verify_*`` checks the signature before it reads, then everything the record must agree with, and raises
VerificationError (or a subclass) that says which rule failed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from cipherward.crypto.labels import Label
from cipherward.crypto.manifest_rules import colluders_withstood, effective_threshold
from cipherward.crypto.seal_sizes import PUBLIC_BYTES
from cipherward.crypto.sealing_keys import check_public
from cipherward.crypto.signing import record_digest, signer_name, verify
from cipherward.crypto.suites.base import KeyLifetime, SuiteParams
from cipherward.crypto.suites.registry import suite as find_suite
from cipherward.crypto.transcript import transcript_next
from cipherward.errors import FormatError, IdentityError, VerificationError
from cipherward.ids import DIGEST_BYTES, Digest
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.round_pb2 import (
    AbortRecord,
    CloseRecord,
    Commit,
    Join,
    ModelReport,
    PlanRecord,
    RelayItem,
    RoundRecord,
)
from cipherward.proto.v1.study_pb2 import Manifest, RosterSite


@dataclass(frozen=True)
class StudyTrust:
    """A verified manifest and what follows from it: whose signature counts for what."""

    manifest: Manifest
    digest: Digest

    @cached_property
    def sites(self) -> Mapping[str, RosterSite]:
        """Roster by name, in the manifest's order."""
        return {site.name: site for site in self.manifest.roster}

    @cached_property
    def order(self) -> Mapping[str, int]:
        """Position on the roster by name: the order of plans and close records."""
        return {name: position for position, name in enumerate(self.sites)}

    @cached_property
    def key_lifetime(self) -> KeyLifetime:
        """Of the study's suite: one key for the study, or one for each attempt. UsageError if unknown."""
        return find_suite(self.manifest.suite.name).key_lifetime

    @cached_property
    def params(self) -> SuiteParams:
        """The suite's parameter set, at the study's bound and for its roster. UsageError if there is none."""
        entry = self.manifest.suite
        return find_suite(entry.name).parameters(entry.parameters, entry.bound, len(self.manifest.roster))

    def site(self, name: str) -> RosterSite:
        """The roster's entry; raises IdentityError."""
        try:
            return self.sites[name]
        except KeyError:
            raise IdentityError(
                f"site {name[:80]!r} is not on the roster of study {self.manifest.study}",
                fix="Ask the consortium's admin for a manifest that names it",
            ) from None

    def _bind(self, kind: str, manifest_digest: bytes, round_number: int, expected_round: int) -> None:
        if manifest_digest != self.digest:
            raise VerificationError(f"a {kind} belongs to another study or manifest version")
        if round_number != expected_round:
            raise VerificationError(f"a {kind} is of round {round_number}, not {expected_round}")


def _need(condition: bool, what: str, why: str = "") -> None:
    if not condition:
        raise VerificationError(what, why=why)


def verify_round_record(signed: Signed, trust: StudyTrust, round_number: int) -> RoundRecord:
    """Step 1: the coordinator opened this round of this study."""
    record = verify(signed, Label.ROUND_RECORD, trust.manifest.coordinator.signing_key, RoundRecord)
    trust._bind("round record", record.manifest_digest, record.round, round_number)
    _need(
        trust.manifest.first_round <= round_number <= trust.manifest.rounds,
        f"round {round_number} is not one of the study's rounds",
    )
    _need(
        len(record.model_digest) == DIGEST_BYTES and len(record.previous_transcript) == DIGEST_BYTES,
        "a round record lacks a digest",
    )
    return record


def verify_join(
    signed: Signed, trust: StudyTrust, round_record_digest: bytes, round_number: int, site: str
) -> Join:
    """Step 3: ``site`` is ready to upload in the round so opened."""
    join = verify(signed, Label.JOIN, trust.site(site).signing_key, Join)
    trust._bind("join", join.manifest_digest, join.round, round_number)
    _need(join.site == site, f"a join signed by {site} names {join.site[:80]!r}")
    _need(
        join.round_record_digest == round_record_digest,
        f"{site} joined another opening of round {round_number}",
    )
    suite = trust.manifest.suite
    _need(
        join.library == suite.library,
        f"{site} runs {join.library[:80] or 'an unnamed library'}",
        f"the manifest fixes {suite.library}, and formats differ between its releases",
    )
    if trust.key_lifetime is KeyLifetime.STUDY:
        _need(len(join.shared_key_digest) == DIGEST_BYTES, f"{site} joined without the shared key's digest")
        _need(not join.round_key, "a join of the shared-key suite carries a round key")
    else:
        _need(
            len(join.round_key) == PUBLIC_BYTES,
            f"{site} joined with a round key of {len(join.round_key)} bytes",
            f"it must have {PUBLIC_BYTES}",
        )
        try:
            check_public(join.round_key)
        except FormatError as error:
            raise VerificationError(
                f"{site} joined with a round key to which nothing can be sealed",
                why="it is no ML-KEM-768 and X25519 key",
            ) from error
        _need(not join.shared_key_digest, "a join carries a shared key's digest outside the shared-key suite")
    return join


@dataclass(frozen=True)
class Plan:
    """A verified plan record: J in the roster's order, with their joins."""

    digest: Digest
    round_record_digest: bytes
    round: int
    joins: Mapping[str, Join]
    threshold: int
    """Quorum: t, how many of J open a sum. 0 in the shared-key suite."""

    @cached_property
    def members(self) -> tuple[str, ...]:
        """J, in order. The member at place j, from 0, has the point x = j + 1."""
        return tuple(self.joins)

    @cached_property
    def places(self) -> Mapping[str, int]:
        """The place of each member in J, from 0."""
        return {name: place for place, name in enumerate(self.joins)}


def verify_plan(signed: Signed, trust: StudyTrust, round_record_digest: bytes, round_number: int) -> Plan:
    """Step 3: J is large enough, in order, without doubles, and everyone in it signed for this very round."""
    record = verify(signed, Label.PLAN_RECORD, trust.manifest.coordinator.signing_key, PlanRecord)
    trust._bind("plan record", record.manifest_digest, record.round, round_number)
    _need(
        record.round_record_digest == round_record_digest,
        "a plan record follows another opening of the round",
    )
    joins: dict[str, Join] = {}
    last = -1
    for item in record.joins:
        name = signer_name(item)
        join = verify_join(item, trust, round_record_digest, round_number, name)
        position = trust.order[name]
        _need(position > last, "a plan record's sites are doubled or not in the roster's order")
        last, joins[name] = position, join
    _need(
        len(joins) >= trust.manifest.minimum_cohort,
        f"a plan record names {len(joins)} sites",
        f"the study's minimum cohort is {trust.manifest.minimum_cohort}",
    )
    keys = {join.shared_key_digest for join in joins.values()}
    _need(
        len(keys) == 1,
        "the sites of a plan do not hold the same shared key",
        "its maker or the relay gave out different keys",
    )
    round_keys = [join.round_key for join in joins.values() if join.round_key]
    _need(len(set(round_keys)) == len(round_keys), "two sites of a plan have the same round key")
    threshold = 0
    if trust.key_lifetime is KeyLifetime.ATTEMPT:
        threshold = _check_quorum_of(trust, len(joins))
    return Plan(record_digest(Label.PLAN_RECORD, signed), round_record_digest, round_number, joins, threshold)


def _check_quorum_of(trust: StudyTrust, joined: int) -> int:
    """t of a round that ``joined`` sites joined. The manifest's rules imply that it is sound; it is checked
    again where it is relied on (quorum suite, rule 4)."""
    threshold = effective_threshold(trust.manifest.threshold, joined)
    _need(threshold <= joined, f"{joined} sites joined", f"the threshold is {threshold}")
    _need(
        trust.manifest.colluders <= colluders_withstood(threshold, joined),
        f"{joined} sites joined",
        f"with threshold {threshold} they do not withstand {trust.manifest.colluders} colluding sites",
    )
    return threshold


def verify_commit(signed: Signed, trust: StudyTrust, plan: Plan, site: str) -> Commit:
    """Step 3: ``site`` signed for everything it uploaded under this plan."""
    commit = verify(signed, Label.COMMIT, trust.site(site).signing_key, Commit)
    trust._bind("commit", commit.manifest_digest, commit.round, plan.round)
    _need(commit.site == site, f"a commit signed by {site} names {commit.site[:80]!r}")
    _need(site in plan.joins, f"{site} committed without being in the plan")
    _need(commit.plan_digest == plan.digest, f"{site} committed under another plan")
    _need(commit.attempt >= 1 and commit.chunk_count >= 1 and commit.length >= 1, f"{site}'s commit is empty")
    _need(len(commit.ciphertext_root) == DIGEST_BYTES, f"{site}'s commit lacks the root of its ciphertexts")
    _need(len(commit.ledger_head) == DIGEST_BYTES, f"{site}'s commit lacks its ledger's head")
    shares = trust.key_lifetime is KeyLifetime.ATTEMPT
    _need(
        len(commit.share_root) == (DIGEST_BYTES if shares else 0), f"{site}'s commit has a wrong share root"
    )
    return commit


def verify_close(signed: Signed, trust: StudyTrust, plan: Plan, previous_transcript: bytes) -> CloseRecord:
    """Step 5: U is a large enough part of J, in order, each with its commit, chained to what came before."""
    record = verify(signed, Label.CLOSE_RECORD, trust.manifest.coordinator.signing_key, CloseRecord)
    trust._bind("close record", record.manifest_digest, record.round, plan.round)
    _need(record.plan_digest == plan.digest, "a close record follows another plan")
    _need(
        record.previous_transcript == previous_transcript,
        "a close record does not continue the transcript",
        "the coordinator showed this site another history",
    )
    last, lengths = -1, set()
    for item in record.contributions:
        commit = verify_commit(item.commit, trust, plan, item.site)
        position = trust.order[item.site]
        _need(position > last, "a close record's sites are doubled or not in the roster's order")
        last = position
        _need(
            (item.attempt, item.ciphertext_root, item.share_root)
            == (commit.attempt, commit.ciphertext_root, commit.share_root),
            f"a close record lists something else than {item.site} committed",
        )
        lengths.add((commit.length, commit.chunk_count))
    _need(
        len(record.contributions) >= trust.manifest.minimum_cohort,
        f"a close record sums {len(record.contributions)} updates",
        f"the study's minimum cohort is {trust.manifest.minimum_cohort}",
    )
    _need(
        len(record.contributions) >= plan.threshold,
        f"a close record sums {len(record.contributions)} updates",
        f"the round's threshold is {plan.threshold}",
    )
    _need(len(lengths) == 1, "the updates of a close record differ in length")
    _need(
        record.sum_chunk_count == lengths.pop()[1] and len(record.sum_root) == DIGEST_BYTES,
        "a close record describes a sum of another size than the updates",
    )
    return record


def verify_abort(
    signed: Signed, trust: StudyTrust, round_number: int, previous_transcript: bytes
) -> AbortRecord:
    """The round was aborted and takes its place in the chain as such."""
    record = verify(signed, Label.ABORT_RECORD, trust.manifest.coordinator.signing_key, AbortRecord)
    trust._bind("abort record", record.manifest_digest, record.round, round_number)
    _need(
        record.previous_transcript == previous_transcript, "an abort record does not continue the transcript"
    )
    return record


@dataclass(frozen=True, slots=True)
class Closed:
    """A verified close record, next in the transcript."""

    signed: Signed
    record: CloseRecord
    plan: Plan
    digest: Digest
    transcript: Digest
    """After it."""

    @property
    def cohort(self) -> tuple[str, ...]:
        """U, in order."""
        return tuple(item.site for item in self.record.contributions)


@dataclass(frozen=True, slots=True)
class Aborted:
    """A verified abort record, next in the transcript."""

    signed: Signed
    record: AbortRecord
    digest: Digest
    transcript: Digest
    """After it."""


Ending = Closed | Aborted


def verify_ending(
    signed: Signed,
    trust: StudyTrust,
    round_number: int,
    previous_transcript: bytes,
    plan: Callable[[], Plan],
) -> Ending:
    """The record that ended the round, close or abort, next after ``previous_transcript``.

    ``plan`` gives the round's verified plan; it is called for a close record only: a round may be aborted
    before it has one.
    """
    try:
        verify(signed, Label.ABORT_RECORD, trust.manifest.coordinator.signing_key, AbortRecord)
    except VerificationError:
        accepted = plan()
        close = verify_close(signed, trust, accepted, previous_transcript)
        digest = record_digest(Label.CLOSE_RECORD, signed)
        return Closed(signed, close, accepted, digest, transcript_next(previous_transcript, digest))
    abort = verify_abort(signed, trust, round_number, previous_transcript)
    digest = record_digest(Label.ABORT_RECORD, signed)
    return Aborted(signed, abort, digest, transcript_next(previous_transcript, digest))


def verify_model_report(signed: Signed, trust: StudyTrust, round_number: int, site: str) -> ModelReport:
    """Step 7: the model that ``site`` says it has after the round."""
    report = verify(signed, Label.MODEL_REPORT, trust.site(site).signing_key, ModelReport)
    trust._bind("model report", report.manifest_digest, report.round, round_number)
    _need(report.site == site, f"a model report signed by {site} names {report.site[:80]!r}")
    _need(len(report.model_digest) == DIGEST_BYTES, f"{site}'s model report lacks the digest")
    return report


def verify_relay(signed: Signed, trust: StudyTrust, receiver: str) -> RelayItem:
    """A sealed item from one roster site to another; for keys the sender must be the named maker."""
    sender = signer_name(signed)
    item = verify(signed, Label.RELAY, trust.site(sender).signing_key, RelayItem)
    _need(item.manifest_digest == trust.digest, "a relayed item belongs to another study or manifest version")
    _need(item.sender == sender and item.receiver == receiver, "a relayed item is between other sites")
    trust.site(receiver)
    if item.kind == RelayItem.KIND_SHARED_KEY:
        _need(
            sender == trust.manifest.suite.key_maker,
            f"{sender} made a key",
            "the manifest names another maker",
        )
    else:
        _need(item.kind == RelayItem.KIND_MODEL, "a relayed item is of an unknown kind")
    return item


def agreement_needed(colluders: int, others: int) -> int:
    """How many of the ``others`` in the last U must agree before a site that differs gives in (step 7)."""
    return max(colluders + 1, others // 2 + 1)
