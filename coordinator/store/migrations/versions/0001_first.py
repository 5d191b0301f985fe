"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _study() -> sa.Column[str]:
    return sa.Column("study", sa.String(63), sa.ForeignKey("studies.study"), primary_key=True)


def upgrade() -> None:
    """Create all tables."""
    op.create_table(
        "studies",
        sa.Column("study", sa.String(63), primary_key=True),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("transcript", sa.LargeBinary, nullable=False),
        sa.Column("weights", sa.String(200), nullable=False),
    )
    op.create_table(
        "manifests",
        _study(),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("digest", sa.LargeBinary, nullable=False, unique=True),
        sa.Column("signed", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "records",
        _study(),
        sa.Column("round", sa.Integer, primary_key=True),
        sa.Column("kind", sa.Integer, primary_key=True),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("signed", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "posts",
        _study(),
        sa.Column("round", sa.Integer, primary_key=True),
        sa.Column("kind", sa.String(20), primary_key=True),
        sa.Column("site", sa.String(63), primary_key=True),
        sa.Column("signed", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "rounds",
        _study(),
        sa.Column("round", sa.Integer, primary_key=True),
        sa.Column("opened_at", sa.Float, nullable=False),
        sa.Column("planned_at", sa.Float),
        sa.Column("reported_at", sa.Float),
        sa.Column("contributors", sa.Text, nullable=False),
        sa.Column("aborted", sa.Boolean, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("bytes_up", sa.BigInteger, nullable=False),
        sa.Column("bytes_down", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "segments",
        sa.Column("chunk_set", sa.String(200), primary_key=True),
        sa.Column("first", sa.Integer, primary_key=True),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("blob", sa.String(64), nullable=False),
        sa.Column("sizes", sa.LargeBinary, nullable=False),
        sa.Column("leaves", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "relay",
        _study(),
        sa.Column("kind", sa.Integer, primary_key=True),
        sa.Column("manifest", sa.LargeBinary, primary_key=True),
        sa.Column("receiver", sa.String(63), primary_key=True),
        sa.Column("sender", sa.String(63), primary_key=True),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("stored_at", sa.Float, nullable=False),
        sa.Column("signed", sa.LargeBinary, nullable=False),
        sa.Column("chunk_set", sa.String(200), nullable=False),
    )
    op.create_table(
        "model_requests",
        _study(),
        sa.Column("receiver", sa.String(63), primary_key=True),
        sa.Column("round", sa.Integer, nullable=False),
    )
