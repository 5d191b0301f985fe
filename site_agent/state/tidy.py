"""What the agent removes when it starts, before anything else runs: what no round and no study needs any more."""

from __future__ import annotations

from sqlalchemy import Engine

from cipherward.clock import Clock
from cipherward.crypto.signing import parse
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.round_pb2 import RoundRecord
from cipherward.site_agent.journal.journal import Journal
from cipherward.site_agent.journal.outbox import Outbox
from cipherward.site_agent.state.folder import SiteFolder
from cipherward.site_agent.state.models import ModelStore
from cipherward.site_agent.state.studies import StudyStore


def tidy(folder: SiteFolder, engine: Engine, clock: Clock) -> None:
    """Outboxes of rounds that are over, which a crash or a failing disk kept from going with them, and models that
    newer ones have replaced. Raises EnvironmentProblem, or FormatError for a damaged journal."""
    studies = StudyStore(engine)
    wanted = studies.models_in_use()
    for name in studies.names():
        row = studies.row(name)
        if row is None:
            continue
        for path in folder.ended_outboxes(name, row.transcript_round):
            Outbox(path).discard()
        # Those before it stay as well: a round that too few could open is given up, and the study goes back.
        if (versions := studies.versions(name)) is not None:
            wanted.add(versions.trusts[0].manifest.initial_weights_digest)
        opening = Journal(engine, name, clock).entry(row.model_round).round_record
        if opening is not None:
            signed: Signed = parse(opening, Signed, "round record")
            record: RoundRecord = parse(signed.payload, RoundRecord, "round record")
            wanted.add(record.model_digest)
    ModelStore(folder.models).keep_only(wanted)
