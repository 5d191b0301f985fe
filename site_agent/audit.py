"""``audit verify`` of a site's folder: the records that this hospital keeps, verified again from the root's signature
on. No key is loaded, nothing is written, and the agent may run."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, Row, select

from cipherward.crypto.audit import StudyAudit
from cipherward.crypto.history import (
    Finding,
    Found,
    History,
    RoundEvidence,
    VerifiedRound,
    located,
    verify_versions,
)
from cipherward.crypto.pki.anchor import Anchor
from cipherward.crypto.records import Closed
from cipherward.crypto.signing import parse
from cipherward.database import reading
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.site_agent.state.folder import MIGRATIONS, SiteFolder
from cipherward.site_agent.state.tables import manifests, rounds, studies

OTHERS_KEEP = "a site keeps no updates: the coordinator's folder has them"


def audit_site(folder: SiteFolder, site: str, anchor: Anchor) -> list[StudyAudit]:
    """One report for each study that the site admitted, in the order of their names.

    ``site``: its own name. Raises EnvironmentProblem if its database cannot be read.
    """
    with reading(folder.database_url, MIGRATIONS, "the site's database cannot be read") as connection:
        found = connection.execute(select(studies).where(studies.c.model_digest != b"").order_by("study"))
        return [_audit(connection, row, site, anchor) for row in found.all()]


def _audit(connection: Connection, study: Row[tuple[object, ...]], site: str, anchor: Anchor) -> StudyAudit:
    audit = StudyAudit(study.study)
    try:
        query = select(manifests.c.signed).where(manifests.c.study == study.study)
        stored = connection.execute(query.order_by(manifests.c.version)).scalars()
        with located(study.study):
            signed = [parse(one, Signed, "manifest") for one in stored]
        trusts = verify_versions(signed, anchor)
        if trusts[0].manifest.study != study.study:
            raise Found(Finding(f"its manifest is that of {trusts[0].manifest.study}", study.study))
        history = History(trusts)
        audit.begin(trusts, history.transcript)
        entries = connection.execute(select(rounds).where(rounds.c.study == study.study).order_by("round"))
        for entry in entries:
            with located(study.study, entry.round):
                evidence = _evidence(entry, site)
            verified = history.add(evidence)
            audit.count(verified, evidence)
            _check_own(entry, verified, site)
            if isinstance(verified.ending, Closed):
                audit.not_added.setdefault(OTHERS_KEEP, []).append(entry.round)
        if (history.ended, history.transcript) != (study.transcript_round, study.transcript):
            what = "the head of the transcript is not the hash of the records up to this round"
            raise Found(Finding(what, study.study, study.transcript_round))
    except Found as found:
        audit.finding = found.finding
    return audit


def _evidence(entry: Row[tuple[object, ...]], site: str) -> RoundEvidence:
    opening, plan, ending, commit = (
        None if content is None else parse(content, Signed, "record")
        for content in (entry.round_record, entry.plan_record, entry.closing_record, entry.commit_record)
    )
    return RoundEvidence(entry.round, opening, plan, ending, {} if commit is None else {site: commit})


def _check_own(entry: Row[tuple[object, ...]], verified: VerifiedRound, site: str) -> None:
    """Whether the commit is of the attempt and the roots that the journal has."""
    study = verified.trust.manifest.study
    if (
        isinstance(verified.ending, Closed)
        and site in verified.ending.cohort
        and site not in verified.commits
    ):
        what = "the close record counts a commit that the journal does not have"
        raise Found(Finding(what, study, verified.number, site))
    for commit in verified.commits.values():
        signed: Sequence[object] = (commit.attempt, commit.ciphertext_root, commit.share_root)
        if signed != (entry.attempt, entry.ciphertext_root, entry.share_root or b""):
            what = "it committed another attempt, or other roots, than the journal has"
            raise Found(Finding(what, study, verified.number, site))
