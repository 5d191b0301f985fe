"""Step 4: open the shares addressed to this site, and say which opened, so that a dealer whose shares do not open
is left out of U instead of blocking it."""

from __future__ import annotations

from cipherward.crypto.labels import Label
from cipherward.crypto.quorum.sealed import Dealing
from cipherward.crypto.quorum_records import check_share
from cipherward.crypto.records import Plan, StudyTrust
from cipherward.crypto.signing import record_digest
from cipherward.crypto.suites.site_side import one_time_key_side
from cipherward.errors import VerificationError
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.round_pb2 import Acknowledgement, Attempt, Commit
from cipherward.site_agent.daemon.quorum.secrets import RoundSecret
from cipherward.site_agent.daemon.study import Study


def dealing_of(trust: StudyTrust, plan: Plan, commit: Commit) -> Dealing:
    """What a dealer's shares were sealed with, from its verified commit."""
    suite = trust.manifest.suite
    return Dealing(
        manifest_digest=trust.digest,
        plan_digest=plan.digest,
        suite=f"{suite.name}:{suite.parameters}",
        threshold=plan.threshold,
        members=plan.members,
        dealer=commit.site,
        attempt=commit.attempt,
        ciphertext_root=commit.ciphertext_root,
    )


def acknowledge(study: Study, round_number: int, secret: RoundSecret) -> None:
    """Fetch, check, open, journal, post. The opened shares stay in ``secret``."""
    known = study.journal.entry(round_number).acknowledgement
    if known is None:
        record = open_shares(study, round_number, secret)
        signed = study.site.sign(Label.ACKNOWLEDGEMENT, record)
        study.journal.write(round_number, acknowledgement=signed.SerializeToString(deterministic=True))
        study.log.info(
            "acknowledged", round=round_number, opened=len(record.opened), unopenable=len(record.unopenable)
        )
    else:
        signed = Signed.FromString(known)
    study.client.post_acknowledgement(study.name, signed)


def open_shares(study: Study, round_number: int, secret: RoundSecret) -> Acknowledgement:
    """Fetch, check and open what is addressed to this site into ``secret``; what there is to say of it."""
    trust, plan, name = study.trust(round_number), study.plan(round_number), study.site.name
    side, place = one_time_key_side(trust.manifest.suite.name), plan.places[name]
    found: dict[str, tuple[Attempt, bool]] = {}
    for message in study.client.shares(study.name, round_number, len(plan.members)):
        try:
            commit = check_share(message, trust, plan, name)
        except VerificationError as error:
            # Not what a dealer signed for: the coordinator's doing, so nothing is said about the dealer.
            study.log.warning("a share is refused", round=round_number, error=str(error))
            continue
        opened = False
        try:
            share = dealing_of(trust, plan, commit).open(place, secret.key, message.sealed)
            secret.shares[record_digest(Label.COMMIT, message.commit)] = side.add_shares(
                trust.params, [share]
            )
            opened = True
        except VerificationError as error:
            study.log.warning(
                "a share does not open", round=round_number, dealer=commit.site, error=str(error)
            )
        found[commit.site] = (Attempt(site=commit.site, attempt=commit.attempt), opened)
    ordered = sorted(found, key=plan.places.__getitem__)
    return Acknowledgement(
        manifest_digest=trust.digest,
        plan_digest=plan.digest,
        round=round_number,
        site=name,
        opened=[found[site][0] for site in ordered if found[site][1]],
        unopenable=[found[site][0] for site in ordered if not found[site][1]],
    )
