"""The tables. ``migrations`` creates them; a test compares the two."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData()

# One row. What belongs to this database elsewhere bears its name.
identity = Table(
    "identity",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("name", String(32), nullable=False),
    Column("generation", Integer, nullable=False),  # coordinator processes that have used it so far
)

studies = Table(
    "studies",
    metadata,
    Column("study", String(63), primary_key=True),
    Column("state", Text, nullable=False),  # rounds.codec
    Column("transcript", LargeBinary, nullable=False),  # the chain's head, 32 bytes
    Column("weights", String(200), nullable=False),  # chunk set of the initial weights
)

manifests = Table(
    "manifests",
    metadata,
    Column("study", String(63), ForeignKey("studies.study"), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("digest", LargeBinary, nullable=False, unique=True),
    Column("signed", LargeBinary, nullable=False),
)

# What the coordinator signed. Kinds are RecordKind's numbers: round, plan, close (or abort, in its place).
records = Table(
    "records",
    metadata,
    Column("study", String(63), ForeignKey("studies.study"), primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("kind", Integer, primary_key=True),
    Column("digest", LargeBinary, nullable=False),
    Column("signed", LargeBinary, nullable=False),
)

# What sites signed: the newest of each kind, by site and round.
posts = Table(
    "posts",
    metadata,
    Column("study", String(63), ForeignKey("studies.study"), primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("kind", String(20), primary_key=True),
    Column("site", String(63), primary_key=True),
    Column("signed", LargeBinary, nullable=False),
)

# Figures of a round for reports; times are Unix seconds.
rounds = Table(
    "rounds",
    metadata,
    Column("study", String(63), ForeignKey("studies.study"), primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("opened_at", Float, nullable=False),
    Column("planned_at", Float),
    Column("reported_at", Float),
    Column("contributors", Text, nullable=False, default=""),  # names, joined by spaces
    Column("aborted", Boolean, nullable=False, default=False),
    Column("reason", Text, nullable=False, default=""),
    Column("bytes_up", BigInteger, nullable=False, default=0),
    Column("bytes_down", BigInteger, nullable=False, default=0),
)

# Runs of chunks. A chunk set is an update, a sum, a relayed body or initial weights.
segments = Table(
    "segments",
    metadata,
    Column("chunk_set", String(200), primary_key=True),
    Column("first", Integer, primary_key=True),
    Column("count", Integer, nullable=False),
    Column("blob", String(64), nullable=False),
    Column("sizes", LargeBinary, nullable=False),  # u32 big-endian each
    Column("leaves", LargeBinary, nullable=False),  # 32 bytes each
)

relay = Table(
    "relay",
    metadata,
    Column("study", String(63), ForeignKey("studies.study"), primary_key=True),
    Column("kind", Integer, primary_key=True),
    Column("manifest", LargeBinary, primary_key=True),
    Column("receiver", String(63), primary_key=True),
    Column("sender", String(63), primary_key=True),
    Column("round", Integer, nullable=False),
    Column("stored_at", Float, nullable=False),
    Column("signed", LargeBinary, nullable=False),
    Column("chunk_set", String(200), nullable=False),
)

model_requests = Table(
    "model_requests",
    metadata,
    Column("study", String(63), ForeignKey("studies.study"), primary_key=True),
    Column("receiver", String(63), primary_key=True),
    Column("round", Integer, nullable=False),  # whose model it has
)
