"""Step 6: the one answer of a round; and step 7: what the members' answers add up to."""

from __future__ import annotations

from collections.abc import Iterator

from cipherward.crypto.labels import Label, digest
from cipherward.crypto.quorum.sealed import Answering
from cipherward.crypto.quorum_records import check_answer_key, sealed_root
from cipherward.crypto.records import Closed
from cipherward.crypto.suites.base import Combined
from cipherward.crypto.suites.site_side import one_time_key_side
from cipherward.errors import PolicyError, ProtocolError, UnavailableError, VerificationError
from cipherward.proto.v1.coordinator_pb2 import PostAnswerRequest
from cipherward.proto.v1.round_pb2 import Answer
from cipherward.site_agent.daemon.quorum.acknowledging import open_shares
from cipherward.site_agent.daemon.quorum.secrets import RoundSecret
from cipherward.site_agent.daemon.study import Study


def answer(study: Study, round_number: int, closed: Closed, secret: RoundSecret) -> None:
    """Answer the closed round: one U, ever. The journal names it before the answer exists.

    Raises PolicyError for a U smaller than this hospital wants, ProtocolError if a share of U did not open
    here, ConflictError if another U was answered before.
    """
    if secret.answer is None:
        minimum = study.site.policy.minimum_cohort
        if len(closed.cohort) < minimum:
            raise PolicyError(
                f"round {round_number} sums {len(closed.cohort)} updates",
                why=f"this hospital's policy wants at least {minimum}",
            )
        if study.journal.entry(round_number).acknowledgement is None:
            # The coordinator waits for the last members only briefly: too late to say what opens, this site can
            # still answer.
            open_shares(study, round_number, secret)
        vector = _sum_of_shares(study, round_number, closed, secret)
        study.journal.write(round_number, answered_close=closed.digest)
        secret.answer = _sealed_answer(study, round_number, closed, vector)
        study.log.info("answered", round=round_number, contributors=len(closed.cohort))
    elif study.journal.entry(round_number).answered_close != closed.digest:
        # The same check as the journal's, where there is nothing left to write.
        raise VerificationError(
            f"the coordinator closed round {round_number} of {study.name} twice",
            why="this site answered another close record and answers one U a round, ever",
        )
    study.client.post_answer(secret.answer)


def _sum_of_shares(study: Study, round_number: int, closed: Closed, secret: RoundSecret) -> bytes:
    shares, missing = [], []
    for item in closed.record.contributions:
        share = secret.shares.get(digest(Label.COMMIT, item.commit.payload))
        if share is None:
            missing.append(item.site)
        else:
            shares.append(share)
    if missing:
        raise ProtocolError(
            f"this site cannot answer round {round_number}",
            why=f"the shares of {', '.join(missing[:5])} did not open here",
            fix="Nothing is to be done here: the others can open the sum without this site",
        )
    trust = study.trust(round_number)
    return one_time_key_side(trust.manifest.suite.name).add_shares(trust.params, shares)


def _sealed_answer(study: Study, round_number: int, closed: Closed, vector: bytes) -> PostAnswerRequest:
    trust, plan, site = study.trust(round_number), closed.plan, study.site
    answering = Answering(trust.digest, plan.digest, closed.digest, plan.members, site.name)
    encrypted, keys = answering.seal([join.round_key for join in plan.joins.values()], vector)
    signed = site.sign(
        Label.ANSWER,
        Answer(
            manifest_digest=trust.digest,
            plan_digest=plan.digest,
            close_digest=closed.digest,
            round=round_number,
            site=site.name,
            encrypted_vector=encrypted,
            key_root=sealed_root(keys),
        ),
    )
    return PostAnswerRequest(study=study.name, record=signed, sealed_keys=keys)


def combined_keys(study: Study, round_number: int, closed: Closed, secret: RoundSecret) -> Iterator[Combined]:
    """Keys of the sum over U that the answers allow, the likeliest first; the right one is that which opens it.

    Raises UnavailableError while there are fewer than t good answers, VerificationError if no key within its
    bound fits enough of them.
    """
    trust, plan = study.trust(round_number), closed.plan
    side, params = one_time_key_side(trust.manifest.suite.name), trust.params
    place = plan.places[study.site.name]
    points: dict[int, bytes] = {}
    for message in study.client.answers(study.name, round_number, len(plan.members)):
        try:
            record = check_answer_key(message, trust, plan, closed.digest, study.site.name)
            answering = Answering(trust.digest, plan.digest, closed.digest, plan.members, record.site)
            vector = answering.open(place, secret.key, record.encrypted_vector, message.sealed_key)
            points.setdefault(plan.places[record.site] + 1, side.add_shares(params, [vector]))
        except VerificationError as error:
            study.log.warning("an answer is refused", round=round_number, error=str(error))
    if len(points) < plan.threshold:
        raise UnavailableError(
            f"round {round_number} has {len(points)} good answers",
            why=f"{plan.threshold} are needed to open its sum",
        )
    return side.combine(params, points, plan.threshold, len(closed.cohort))


def report_wrong(study: Study, round_number: int, closed: Closed, combined: Combined) -> None:
    """Say whose answers did not fit. Never blame automatically: a dealer can make an honest member's wrong."""
    if not combined.wrong:
        return
    names = ", ".join(closed.plan.members[point - 1] for point in combined.wrong)
    study.log.warning("wrong answers were passed over", round=round_number, members=names)
    study.journal.incident(
        round_number,
        f"the answers of {names} do not fit the others: theirs, or a dealer's share to them, is wrong",
    )
