"""A close record over fewer contributors than the study's minimum cohort, signed by everybody it needs."""

from __future__ import annotations

from cipherward.crypto.labels import Label
from cipherward.crypto.records import Plan, StudyTrust, verify_close
from cipherward.evaluation.threats.kit.hospital import NAMES, Hospitals
from cipherward.ids import Digest, Role
from cipherward.proto.v1.round_pb2 import CloseRecord, Commit, Contribution, Join
from cipherward.proto.v1.study_pb2 import Manifest

_DIGEST = bytes(32)


def check_close(world: Hospitals, trust: StudyTrust, least: int, contributors: int) -> None:
    """What each site does with a close record over ``contributors`` hospitals, where the manifest's k and t are
    ``least``. Raises VerificationError where it answers nothing."""
    manifest = Manifest()
    manifest.CopyFrom(trust.manifest)
    manifest.minimum_cohort = least
    changed = StudyTrust(manifest, trust.digest)
    joins = {name: Join(site=name) for name in sorted(NAMES)}
    plan = Plan(Digest(_DIGEST), _DIGEST, 1, joins, least)
    contributions = [_contribution(world, trust, name) for name in list(joins)[:contributors]]
    record = CloseRecord(
        manifest_digest=trust.digest,
        plan_digest=plan.digest,
        round=1,
        contributions=contributions,
        sum_root=_DIGEST,
        sum_chunk_count=2,
        previous_transcript=_DIGEST,
    )
    verify_close(world.sign(Label.CLOSE_RECORD, record), changed, plan, _DIGEST)


def _contribution(world: Hospitals, trust: StudyTrust, name: str) -> Contribution:
    member = world.consortium.member(Role.SITE, name)
    commit = Commit(
        manifest_digest=trust.digest,
        plan_digest=_DIGEST,
        round=1,
        attempt=1,
        site=name,
        length=trust.manifest.parameter_count + 4,
        chunk_count=2,
        ciphertext_root=_DIGEST,
        share_root=_DIGEST,
        ledger_sequence=1,
        ledger_head=_DIGEST,
    )
    signed = member.signing_key.sign(Label.COMMIT, commit, str(member.identity))
    return Contribution(site=name, attempt=1, ciphertext_root=_DIGEST, share_root=_DIGEST, commit=signed)
