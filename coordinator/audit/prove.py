"""``audit prove``: a proof for one site and round from the coordinator's store, checked before it is given away."""

from __future__ import annotations

from cipherward.coordinator.audit.source import Source, StoredStudy
from cipherward.crypto.history import Found, History, verify_versions
from cipherward.crypto.inclusion import check_proof, ending_digest, prove_chunk
from cipherward.crypto.pki.anchor import Anchor
from cipherward.errors import UsageError, VerificationError
from cipherward.proto.v1.audit_pb2 import InclusionProof


def prove(
    source: Source, study: StoredStudy, number: int, site: str, chunk: int | None, anchor: Anchor
) -> InclusionProof:
    """The proof. Raises UsageError if the round is not closed or its updates are no longer kept, and
    VerificationError if the store does not bear it out."""
    if not 1 <= number <= study.ended:
        raise UsageError(
            f"round {number} of {study.study} is not closed", why=f"the last that ended is {study.ended}"
        )
    manifests = source.manifests(study.study)
    try:
        history = History(verify_versions(manifests, anchor))
    except Found as found:
        raise VerificationError("the study's manifests do not hold", why=str(found.finding)) from found
    trust = history.trust(number)
    digests = []
    for one in range(1, study.ended + 1):
        ending = source.ending(study.study, one)
        if ending is None:
            raise VerificationError(f"the store lacks the record that ended round {one} of {study.study}")
        digests.append(ending_digest(ending, history.trust(one)))
    look = source.round(study.study, number)
    proof = InclusionProof(
        manifests=manifests[: trust.manifest.version],
        round_record=look.evidence.opening,
        plan_record=look.evidence.plan,
        close_record=look.evidence.ending,
        site=site,
        before=digests[: number - 1],
        after=digests[number:],
    )
    proven = check_proof(proof, anchor)
    if proven.head != study.transcript:
        raise VerificationError(
            f"the transcript of {study.study} is not the hash of the records in the store"
        )
    if chunk is not None:
        kept = look.updates.get((site, proven.contribution.attempt))
        if kept is None:
            raise UsageError(
                f"{site}'s update of round {number} is no longer kept",
                fix="Leave --chunk out; the coordinator's --keep-rounds says for how long updates are kept",
            )
        proof.chunk.CopyFrom(prove_chunk([leaf for _, _, leaf in kept.described()], chunk))
        check_proof(proof, anchor)
    return proof
