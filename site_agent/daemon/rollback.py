"""A site whose state is an older copy would spend privacy twice, or commit twice. The coordinator keeps the
site's own last commit, which signs the ledger's head: it shows."""

from __future__ import annotations

from cipherward.crypto.labels import Label
from cipherward.crypto.signing import verify
from cipherward.errors import RollbackError, VerificationError
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.coordinator_pb2 import RecordKind
from cipherward.proto.v1.round_pb2 import Commit
from cipherward.site_agent.daemon.study import Study

MOST_EVENTS = 2**63 - 1
"""What SQLite can count."""


def check_own_commit(study: Study, round_number: int) -> None:
    """Compare with the last commit that the coordinator has of this site in the study, which need not be known
    here. Raises RollbackError if this site's ledger does not know it or its journal has not this very one,
    VerificationError if this site did not sign it, ProtocolError if the coordinator refuses to show it."""
    signed = study.client.record(study.name, round_number, RecordKind.RECORD_KIND_COMMIT)
    if signed is None:
        return
    site = study.site
    commit = verify(signed, Label.COMMIT, site.member.signing_key.public(), Commit)
    if commit.site != site.name:
        raise VerificationError("the coordinator showed another site's commit as this site's own")
    if commit.ledger_sequence > MOST_EVENTS:
        raise VerificationError(
            "the coordinator showed a commit whose ledger is longer than any ledger can be"
        )
    try:
        site.ledger.check_not_rolled_back(commit.ledger_sequence, commit.ledger_head)
    except VerificationError as error:
        raise RollbackError(error.what, why=error.why, fix=error.fix) from error
    posted = study.journal.entry(commit.round).commit_record
    if posted is None or Signed.FromString(posted).payload != signed.payload:
        raise RollbackError(
            f"this site committed in round {commit.round} of {study.name}, and its journal does not know that commit",
            why="the site's state is an older copy",
            fix="Restore the newest backup of the site's folder; taking part again could reveal an update",
        )
