"""The rules by which shares, acknowledgements, answers and sum checks of the quorum suite are believed. Sites and
coordinator apply the same ones. No key code: what is sealed is only measured and found under a signed root.

A member opens a sealed share or key only after ``check_share`` or ``check_answer_key``: HPKE in base mode does
not authenticate its sender, the signature over the root does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from cipherward.crypto import merkle
from cipherward.crypto.labels import Label, digest
from cipherward.crypto.records import Plan, StudyTrust, verify_commit
from cipherward.crypto.seal_sizes import OVERHEAD
from cipherward.crypto.signing import signer_name, verify
from cipherward.errors import FormatError, VerificationError
from cipherward.ids import DIGEST_BYTES, Digest
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.coordinator_pb2 import AnswerMessage, DataChunk, ShareMessage
from cipherward.proto.v1.round_pb2 import (
    Acknowledgement,
    Answer,
    Attempt,
    CloseRecord,
    Commit,
    Contribution,
    SumCheck,
)

SHARE_BYTES = 2048 * 4
"""A share vector: one value below 2^31 - 1 for each of N = 2048 coefficients, in every parameter set."""
SEALED_SHARE_BYTES = SHARE_BYTES + OVERHEAD
ANSWER_KEY_BYTES = 32
"""AES-256-GCM; fresh for each answer."""
SEALED_KEY_BYTES = ANSWER_KEY_BYTES + OVERHEAD
ENCRYPTED_VECTOR_BYTES = SHARE_BYTES + 16
"""The sum of the shares of U, behind it the GCM tag."""


def sealed_root(sealed: Sequence[bytes]) -> Digest:
    """``share_root`` over sealed shares, or ``key_root`` over sealed keys: one for each of J, in order."""
    return merkle.root([merkle.leaf_hash(one) for one in sealed])


def _need(condition: bool, what: str, why: str = "") -> None:
    if not condition:
        raise VerificationError(what, why=why)


def _bind(
    what: str, site: str, record: Acknowledgement | Answer | SumCheck, trust: StudyTrust, plan: Plan
) -> None:
    """What all records of members have in common."""
    name, manifest, number = record.site, record.manifest_digest, record.round
    _need(name == site, f"{what} signed by {site} names {name[:80]!r}")
    _need(manifest == trust.digest, f"{what} of {site} belongs to another study or manifest version")
    _need(number == plan.round, f"{what} of {site} is of round {number}, not {plan.round}")
    _need(site in plan.places, f"{what} of {site} is refused", "it is not in the plan of the round")


def verify_acknowledgement(signed: Signed, trust: StudyTrust, plan: Plan, site: str) -> Acknowledgement:
    """Step 4: which dealers' shares ``site`` could open, and which not.

    Both lists are in the order of J and name no dealer twice. That together they name every dealer who
    committed is for the coordinator to check: only it knows all commits.
    """
    record = verify(signed, Label.ACKNOWLEDGEMENT, trust.site(site).signing_key, Acknowledgement)
    what = "an acknowledgement"
    _bind(what, site, record, trust, plan)
    _need(record.plan_digest == plan.digest, f"{what} of {site} follows another plan")
    for listed in (record.opened, record.unopenable):
        _check_dealers(f"{what} of {site}", listed, plan)
    both = {item.site for item in record.opened} & {item.site for item in record.unopenable}
    _need(not both, f"{what} of {site} says of {min(both, default='')} both that it opened and that not")
    return record


def _check_dealers(what: str, listed: Iterable[Attempt], plan: Plan) -> None:
    last = -1
    for item in listed:
        place = plan.places.get(item.site, -1)
        _need(place >= 0 and item.attempt >= 1, f"{what} names {item.site[:80]!r}", "it is no dealer")
        _need(place > last, f"{what} names dealers twice or not in the order of the plan")
        last = place


def verify_answer(signed: Signed, trust: StudyTrust, plan: Plan, close_digest: bytes, site: str) -> Answer:
    """Step 6: ``site`` answered exactly this close record. Its vector has the one possible size."""
    record = verify(signed, Label.ANSWER, trust.site(site).signing_key, Answer)
    what = "an answer"
    _bind(what, site, record, trust, plan)
    _need(record.plan_digest == plan.digest, f"{what} of {site} follows another plan")
    _need(record.close_digest == close_digest, f"{what} of {site} is for another close record")
    if len(record.encrypted_vector) != ENCRYPTED_VECTOR_BYTES:
        raise FormatError(
            f"{what} of {site} has {len(record.encrypted_vector)} bytes",
            why=f"it must have {ENCRYPTED_VECTOR_BYTES}",
        )
    _need(len(record.key_root) == DIGEST_BYTES, f"{what} of {site} lacks the root of its sealed keys")
    return record


def verify_sum_check(
    signed: Signed, trust: StudyTrust, plan: Plan, close_digest: bytes, chunk_count: int, site: str
) -> SumCheck:
    """Step 7: the chunks of the sum that ``site`` added up itself: indices below ``chunk_count``, each list
    strictly rising, none in both."""
    record = verify(signed, Label.SUM_CHECK, trust.site(site).signing_key, SumCheck)
    what = "a sum check"
    _bind(what, site, record, trust, plan)
    _need(record.close_digest == close_digest, f"{what} of {site} is for another close record")
    for listed in (record.right, record.wrong):
        rising = all(before < after for before, after in pairwise(listed))
        _need(rising, f"{what} of {site} names chunks twice or out of order")
        _need(
            not listed or listed[-1] < chunk_count,
            f"{what} of {site} names chunk {listed[-1] if listed else 0}",
            f"the sum has {chunk_count}",
        )
    _need(set(record.right).isdisjoint(record.wrong), f"{what} of {site} calls a chunk both right and wrong")
    return record


def check_share(message: ShareMessage, trust: StudyTrust, plan: Plan, receiver: str) -> Commit:
    """A share that GetShares sent: the dealer's signed commit stands for exactly these bytes, for ``receiver``.

    Returns the dealer's commit. The share may be opened then, and only then.
    """
    if len(message.sealed) != SEALED_SHARE_BYTES:
        raise FormatError(
            f"a sealed share has {len(message.sealed)} bytes", why=f"it must have {SEALED_SHARE_BYTES}"
        )
    commit = verify_commit(message.commit, trust, plan, signer_name(message.commit))
    place = _place(plan, receiver)
    _need(message.index == place, f"{commit.site}'s share is for another member than {receiver}")
    leaf = merkle.leaf_hash(message.sealed)
    merkle.verify(leaf, place, len(plan.members), message.inclusion, commit.share_root)
    return commit


def check_answer_key(
    message: AnswerMessage, trust: StudyTrust, plan: Plan, close_digest: bytes, receiver: str
) -> Answer:
    """An answer that GetAnswers sent: its signer stands for exactly this sealed key, for ``receiver``.

    Returns the answer. The key may be opened then, and only then.
    """
    if len(message.sealed_key) != SEALED_KEY_BYTES:
        raise FormatError(
            f"a sealed key has {len(message.sealed_key)} bytes", why=f"it must have {SEALED_KEY_BYTES}"
        )
    answer = verify_answer(message.record, trust, plan, close_digest, signer_name(message.record))
    leaf = merkle.leaf_hash(message.sealed_key)
    merkle.verify(leaf, _place(plan, receiver), len(plan.members), message.inclusion, answer.key_root)
    return answer


def check_update_chunk(chunk: DataChunk, close: CloseRecord, contribution: Contribution) -> None:
    """A chunk that GetUpdateChunks sent is the one that its site committed. ``close`` is verified, and
    ``contribution`` one of its."""
    _need(chunk.site == contribution.site, f"a chunk of {chunk.site[:80]!r} came for {contribution.site}'s")
    leaf = merkle.leaf_hash(chunk.data)
    # All updates of a close record have as many chunks as the sum: ``verify_close``.
    count, root = close.sum_chunk_count, contribution.ciphertext_root
    merkle.verify(leaf, chunk.index, count, chunk.inclusion, root)


def _place(plan: Plan, receiver: str) -> int:
    place = plan.places.get(receiver)
    if place is None:
        raise VerificationError(f"{receiver} is not in the plan of round {plan.round}")
    return place


# Collective verification


def checkers(close_digest: bytes, members: Iterable[str], chunk: int) -> list[str]:
    """J in the order in which its sites are to check that chunk of the sum: the first c + 1, and for each of
    them that is absent the next. Nobody can choose it: it follows from the close record."""
    index = chunk.to_bytes(4, "big")
    return sorted(members, key=lambda site: digest(Label.SUM_CHECK_ORDER, close_digest, index, site.encode()))


@dataclass(frozen=True, slots=True)
class Coverage:
    """What the sum checks so far say."""

    missing: tuple[int, ...]
    """Chunks that fewer than c + 1 members called right."""
    wrong: Mapping[int, tuple[str, ...]]
    """Chunks that members called wrong, and which did."""


def coverage(checks: Mapping[str, SumCheck], colluders: int, chunk_count: int) -> Coverage:
    """What the verified ``checks``, by site, leave to be done.

    A sum may be applied only if no chunk is missing: of any c + 1 distinct members one is honest. A chunk
    that somebody calls wrong is for the caller to add up itself: a colluder can say so of a right one.
    """
    right = [0] * chunk_count
    wrong: dict[int, list[str]] = {}
    for site, record in checks.items():
        for index in record.right:
            right[index] += 1
        for index in record.wrong:
            wrong.setdefault(index, []).append(site)
    missing = tuple(index for index, count in enumerate(right) if count < colluders + 1)
    return Coverage(missing, {index: tuple(sites) for index, sites in sorted(wrong.items())})
