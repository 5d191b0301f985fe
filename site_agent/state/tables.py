"""The site's own tables: what it has accepted, where each study stands, and the journal of each round.

Digests and signed records are kept as the bytes that were verified. A column of ``rounds`` is written once
and never changed (``journal.journal`` holds the rule).
"""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Float, ForeignKey, Integer, LargeBinary, String, Table, Text

from cipherward.site_agent.state.metadata import metadata

studies = Table(
    "studies",
    metadata,
    Column("study", String(63), primary_key=True),
    Column("state", String(16), nullable=False),  # "running", "refused", "finished", "aborted"
    Column("reason", Text, nullable=False, default=""),
    Column("data_set", String(63), nullable=False, default=""),
    Column("transcript_round", Integer, nullable=False, default=0),  # last round whose record is chained
    Column("transcript", LargeBinary, nullable=False),
    Column("model_round", Integer, nullable=False, default=0),  # last closed round that the model contains
    Column("model_digest", LargeBinary, nullable=False),
)

manifests = Table(
    "manifests",
    metadata,
    Column("study", String(63), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("digest", LargeBinary, nullable=False),
    Column("first_round", Integer, nullable=False),
    Column("signed", LargeBinary, nullable=False),
)

rounds = Table(
    "rounds",
    metadata,
    Column("study", String(63), ForeignKey("studies.study"), primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("round_record", LargeBinary),
    Column("started", Boolean),
    Column("update_digest", LargeBinary),  # of the journalled vector; its file lies in the outbox
    Column("join_record", LargeBinary),  # the newest; a quorum site that restarted joins again
    Column("former_joins", LargeBinary),  # digests, 32 bytes each, of those before it
    Column("plan_record", LargeBinary),
    Column("attempt", Integer),  # may grow, never shrink; set before anything is sent
    Column("chunk_count", Integer),
    Column("ciphertext_root", LargeBinary),
    Column("share_root", LargeBinary),  # quorum
    Column("commit_record", LargeBinary),
    Column("acknowledgement", LargeBinary),  # quorum: signed, before it is sent
    Column("answered_close", LargeBinary),  # quorum: digest of the one close record this site answers, ever
    Column("closing_record", LargeBinary),  # close or abort
    Column("transcript", LargeBinary),  # after the closing record
    Column("aborted", Boolean),
    Column("contributors", Text),  # U, space-separated, of a closed round
    Column("model_digest", LargeBinary),  # the site's own model after the round
    Column("loss", Float),  # of the federation: mean over all patients, with noise
    Column("accuracy", Float),
    Column("patients", Float),
    Column("skipped", Text),  # why this site did not take part
)

evaluations = Table(
    "evaluations",
    metadata,
    Column("study", String(63), ForeignKey("studies.study"), primary_key=True),
    Column("round", Integer, primary_key=True),  # 0: the initial model
    Column("figures", Text, nullable=False),  # JSON, from the site's own held-out patients; never leaves it
)

incidents = Table(
    "incidents",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("study", String(63), nullable=False),
    Column("round", Integer, nullable=False),
    Column("recorded_at", Integer, nullable=False),
    Column("message", Text, nullable=False),
    Column("evidence", LargeBinary),  # the signed record that was refused, for the auditor
)

findings = Table(
    "findings",
    metadata,
    Column("study", String(63), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("code", String(40), nullable=False),
    Column("text", Text, nullable=False),
)
