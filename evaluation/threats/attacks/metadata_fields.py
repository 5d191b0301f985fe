"""The allow-list: every field that may leave a site, and everything that a coordinator may keep, with what it tells.

docs/metadata.md shows it; a test compares the two, and row T21 compares it with the wire format and with what a real
coordinator stored and logged.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Group:
    """Fields that tell the same. ``fields``: separated by white space."""

    title: str
    tells: str
    fields: str

    @property
    def names(self) -> frozenset[str]:
        """Each field."""
        return frozenset(self.fields.split())


WIRE = (
    Group(
        "Encrypted",
        "Nothing but its length, which the model's size and the number of members fix. Updates, metrics, key shares, "
        "relayed models and keys are in these fields and in no others.",
        "UploadMessage.data ShareMessage.sealed Answer.encrypted_vector PostAnswerRequest.sealed_keys "
        "RelayItem.sealed_key RelayMessage.data",
    ),
    Group(
        "Which study, version and round",
        "What the signed manifest and the coordinator's own records say already.",
        "GetManifestRequest.study GetManifestRequest.version GetRecordRequest.kind GetRecordRequest.round "
        "GetRecordRequest.study GetRelayRequest.kind GetRelayRequest.study GetSumRequest.round GetSumRequest.study "
        "GetUpdateChunksRequest.round GetUpdateChunksRequest.study PostAnswerRequest.study PostRequest.study "
        "RelayMessage.study RequestModelRequest.study UploadHeader.plan_digest UploadHeader.round UploadHeader.study "
        "Acknowledgement.manifest_digest Acknowledgement.plan_digest Acknowledgement.round Answer.close_digest "
        "Answer.manifest_digest Answer.plan_digest Answer.round Commit.manifest_digest Commit.plan_digest Commit.round "
        "Join.manifest_digest Join.round Join.round_record_digest ModelReport.close_digest ModelReport.manifest_digest "
        "ModelReport.round RelayItem.kind RelayItem.manifest_digest RelayItem.round RelayItem.transcript "
        "SumCheck.close_digest SumCheck.manifest_digest SumCheck.round",
    ),
    Group(
        "Which hospital",
        "Who takes part in each step of each round, and who sends a model or key to whom. Certificates name it too.",
        "Signed.signer Acknowledgement.site Answer.site Commit.site Join.site ModelReport.site SumCheck.site "
        "RelayItem.sender RelayItem.receiver GetRelayRequest.sender Attempt.site",
    ),
    Group(
        "Signatures, and digests of what is encrypted",
        "That the signer made these bytes. A digest of a ciphertext tells nothing that the ciphertext does not.",
        "Signed.payload Signed.signature PostRequest.record PostAnswerRequest.record RelayMessage.item "
        "Commit.ciphertext_root Commit.share_root Answer.key_root RelayItem.body_root UploadMessage.leaf_hash "
        "UploadMessage.share UploadMessage.header ShareMessage.commit ShareMessage.inclusion",
    ),
    Group(
        "Sizes and places",
        "How long the vector is and which piece of it this is: the same for every hospital of a study.",
        "Commit.length Commit.chunk_count UploadMessage.index ShareMessage.index RelayItem.chunk_count "
        "RelayItem.content_length RelayMessage.index GetSumRequest.first_index GetUpdateChunksRequest.indices",
    ),
    Group(
        "Public keys",
        "Fresh in each round.",
        "Join.round_key",
    ),
    Group(
        "Which model and key a hospital has",
        "Whether two hospitals have the same. Who can guess a whole model or key can test the guess.",
        "ModelReport.model_digest Join.shared_key_digest RelayItem.content_digest RequestModelRequest.round",
    ),
    Group(
        "How a hospital fares",
        "How often it began an upload anew; whose shares it could open; which pieces of the sum it found right; "
        "whether it still has its own upload; how many events its privacy ledger has over all its studies, and a hash "
        "of it. The number of events tells of other studies that the hospital takes part in, not what they cost.",
        "Commit.attempt UploadHeader.attempt Attempt.attempt Acknowledgement.opened Acknowledgement.unopenable "
        "SumCheck.right SumCheck.wrong GetUpdateChunksRequest.without_own Commit.ledger_sequence Commit.ledger_head",
    ),
    Group(
        "The agent's software and clock",
        "Which release it runs, which list of revocations it has, and what time its machine has.",
        "HelloRequest.protocol HelloRequest.version HelloRequest.libraries HelloRequest.status_list_number "
        "HelloRequest.now Join.library",
    ),
)

STORED = (
    Group(
        "Signed records and their places",
        "What is above, as it was signed, and which study, round, member and kind it belongs to.",
        "posts.study posts.round posts.kind posts.site posts.signed records.study records.round records.kind "
        "records.digest records.signed manifests.study manifests.version manifests.digest manifests.signed relay.study "
        "relay.kind relay.manifest relay.receiver relay.sender relay.round relay.signed relay.chunk_set "
        "model_requests.study model_requests.receiver model_requests.round",
    ),
    Group(
        "Where ciphertexts lie",
        "Their lengths and leaf hashes.",
        "segments.chunk_set segments.first segments.count segments.blob segments.sizes segments.leaves",
    ),
    Group(
        "When, and how many bytes",
        "When a round was opened, planned and reported, when an item was relayed, and how many bytes all hospitals "
        "together sent and fetched in a round.",
        "rounds.study rounds.round rounds.opened_at rounds.planned_at rounds.reported_at rounds.bytes_up "
        "rounds.bytes_down relay.stored_at",
    ),
    Group(
        "Where a study stands",
        "Who joined, committed, acknowledged, answered and reported, by digests of the records; who made up the sum; "
        "why a round ended.",
        "studies.study studies.state studies.transcript studies.weights rounds.contributors rounds.aborted "
        "rounds.reason state:round state:phase state:since state:model state:model_round state:life state:reason "
        "state:keys state:revoked state:joins state:plan state:commits state:acknowledgements state:enough_since "
        "state:contributors state:answers state:reports",
    ),
    Group(
        "The coordinator itself",
        "Nothing of any hospital.",
        "identity.id identity.name identity.generation",
    ),
)

LOGGED = (
    Group(
        "Of a member's call that was refused",
        "Who called what, and the error that it was told.",
        "rpc caller code reason incident exception",
    ),
    Group(
        "Of a study",
        "Where it stands.",
        "study round phase life studies",
    ),
    Group(
        "Of the coordinator itself",
        "Nothing of any hospital.",
        "address coordinator port number checks tries stray_blobs",
    ),
)


def allowed(groups: tuple[Group, ...]) -> frozenset[str]:
    """All fields of some groups."""
    return frozenset().union(*(group.names for group in groups))
