"""The ledger's two tables. Rows of ``ledger_events`` are only ever added; each has the hash of all before it.

``ledger_patients`` says who was in which version of a data set: version v has the patients with
since <= v < until. The events that registered those versions carry the digests of the sets.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, String, Table, Text

from cipherward.site_agent.state.metadata import metadata

events = Table(
    "ledger_events",
    metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("kind", String(16), nullable=False),  # of ledger.chain.Kind
    Column("dataset", String(63), nullable=False),
    Column("version", Integer, nullable=False),  # of the data set
    Column("study", String(63)),
    Column("round", Integer),
    Column("manifest", LargeBinary(32)),
    Column("details", Text, nullable=False),  # canonical JSON
    Column("recorded_at", BigInteger, nullable=False),  # ms since the epoch; for people, decides nothing
    Column("previous", LargeBinary(32), nullable=False),
    Column("head", LargeBinary(32), nullable=False),
    # One reservation, and one loss of it, for each round of a study.
    Index("uq_ledger_events_once", "kind", "dataset", "study", "round", unique=True),
)

patients = Table(
    "ledger_patients",
    metadata,
    Column("dataset", String(63), primary_key=True),
    Column("digest", LargeBinary(32), primary_key=True),
    Column("since", Integer, primary_key=True),
    Column("until", Integer),  # the first version without the patient
    Index("ix_ledger_patients_digest", "digest"),
)
