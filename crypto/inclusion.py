"""Inclusion proofs as files: that a site's update is in the sum of a round, and the round in the study's transcript.

A proof is checked with the consortium's anchor and nothing else. It ends in a head of the transcript, which any
site of the study can show: with it the history that the proof tells is the one that the sites believe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cipherward.crypto import merkle
from cipherward.crypto.history import Found, verify_versions
from cipherward.crypto.labels import Label
from cipherward.crypto.pki.anchor import Anchor
from cipherward.crypto.pki.armour import Kind, armour, unarmour
from cipherward.crypto.records import (
    StudyTrust,
    verify_close,
    verify_plan,
    verify_round_record,
)
from cipherward.crypto.signing import parse, record_digest, verify
from cipherward.crypto.transcript import transcript_next, transcript_start
from cipherward.errors import FormatError, UsageError, VerificationError
from cipherward.ids import DIGEST_BYTES, Digest
from cipherward.proto.v1.audit_pb2 import ChunkInclusion, InclusionProof
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.round_pb2 import AbortRecord, CloseRecord, Contribution

MAX_PROOF_TEXT = 48 * 2**20
"""Largest file read; the round's records of 1,000 quorum sites take about 8 MB."""


@dataclass(frozen=True, slots=True)
class Proven:
    """What a proof that holds says."""

    study: str
    round: int
    contribution: Contribution
    cohort: tuple[str, ...]
    """U, in order."""
    chunk: int | None
    """The chunk that is proven besides, if any."""
    leaf_hash: bytes
    """Its leaf hash; empty without one."""
    transcript: Digest
    """After the round."""
    head_round: int
    head: Digest
    """The transcript after ``head_round``."""


def ending_digest(signed: Signed, trust: StudyTrust) -> Digest:
    """What the transcript goes on with after a close or abort record; raises VerificationError."""
    key = trust.manifest.coordinator.signing_key
    try:
        verify(signed, Label.CLOSE_RECORD, key, CloseRecord)
    except VerificationError:
        verify(signed, Label.ABORT_RECORD, key, AbortRecord)
        return record_digest(Label.ABORT_RECORD, signed)
    return record_digest(Label.CLOSE_RECORD, signed)


def prove_chunk(leaves: Sequence[bytes], index: int) -> ChunkInclusion:
    """That chunk ``index`` is in the update with those leaf hashes; raises UsageError if it has none such."""
    if not 0 <= index < len(leaves):
        raise UsageError(f"the update has no chunk {index}", why=f"it has {len(leaves)}, from 0")
    return ChunkInclusion(index=index, leaf_hash=leaves[index], path=merkle.prove(leaves, index))


def proof_text(proof: InclusionProof) -> bytes:
    """The armoured file."""
    return armour(Kind.INCLUSION_PROOF, proof.SerializeToString(deterministic=True))


def read_proof(text: bytes) -> InclusionProof:
    """From a file of at most ``MAX_PROOF_TEXT`` bytes; raises FormatError. Nothing in it is believed yet."""
    return parse(unarmour(Kind.INCLUSION_PROOF, text), InclusionProof, "inclusion proof")


def check_proof(proof: InclusionProof, anchor: Anchor) -> Proven:
    """What the proof says, if it holds under that anchor; raises VerificationError or FormatError."""
    try:
        trusts = verify_versions(proof.manifests, anchor)
    except Found as found:
        raise VerificationError("the proof's manifests do not hold", why=str(found.finding)) from found
    if any(len(one) != DIGEST_BYTES for one in (*proof.before, *proof.after)):
        raise FormatError("the proof has a digest of a wrong length")
    number, trust = len(proof.before) + 1, trusts[-1]
    if trust.manifest.first_round > number:
        raise VerificationError(f"the proof has a manifest that begins after round {number}")
    transcript = transcript_start(trust.manifest.study, trusts[0].digest)
    for digest in proof.before:
        transcript = transcript_next(transcript, digest)
    opening = verify_round_record(proof.round_record, trust, number)
    if opening.previous_transcript != transcript:
        raise VerificationError("the proof's round record does not continue its transcript")
    plan = verify_plan(
        proof.plan_record, trust, record_digest(Label.ROUND_RECORD, proof.round_record), number
    )
    close = verify_close(proof.close_record, trust, plan, transcript)
    found_in_u = [item for item in close.contributions if item.site == proof.site]
    if not found_in_u:
        raise VerificationError(
            f"{proof.site[:80]!r} is not in the sum of round {number}",
            why="the close record does not list it",
        )
    contribution, chunk = found_in_u[0], None
    if proof.HasField("chunk"):
        chunk = proof.chunk.index
        if len(proof.chunk.leaf_hash) != DIGEST_BYTES:
            raise FormatError("the proof's leaf hash has a wrong length")
        merkle.verify(
            proof.chunk.leaf_hash,
            chunk,
            close.sum_chunk_count,
            proof.chunk.path,
            contribution.ciphertext_root,
        )
    after = transcript_next(transcript, record_digest(Label.CLOSE_RECORD, proof.close_record))
    head = after
    for digest in proof.after:
        head = transcript_next(head, digest)
    return Proven(
        trust.manifest.study,
        number,
        contribution,
        tuple(item.site for item in close.contributions),
        chunk,
        proof.chunk.leaf_hash,
        after,
        number + len(proof.after),
        head,
    )


def check_chunk(proven: Proven, content: bytes) -> None:
    """Whether ``content`` is the proven chunk; raises VerificationError, or UsageError if none is proven."""
    if proven.chunk is None:
        raise UsageError("the proof is about no chunk", fix="Have it made with --chunk I")
    if merkle.leaf_hash(content) != proven.leaf_hash:
        raise VerificationError(
            f"these bytes are not chunk {proven.chunk} of {proven.contribution.site}'s update in round "
            f"{proven.round}"
        )
