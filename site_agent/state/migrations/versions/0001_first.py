"""The first schema: studies, rounds and the ledger.

Revision ID: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create all tables."""
    op.create_table(
        "findings",
        sa.Column("study", sa.String(length=63), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("code", sa.String(length=40), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("study", "position", name="pk_findings"),
    )
    op.create_table(
        "incidents",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("study", sa.String(length=63), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("recorded_at", sa.Integer(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("evidence", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_incidents"),
    )
    op.create_table(
        "ledger_events",
        sa.Column("sequence", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("dataset", sa.String(length=63), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("study", sa.String(length=63), nullable=True),
        sa.Column("round", sa.Integer(), nullable=True),
        sa.Column("manifest", sa.LargeBinary(length=32), nullable=True),
        sa.Column("details", sa.Text(), nullable=False),
        sa.Column("recorded_at", sa.BigInteger(), nullable=False),
        sa.Column("previous", sa.LargeBinary(length=32), nullable=False),
        sa.Column("head", sa.LargeBinary(length=32), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_ledger_events"),
    )
    op.create_index(
        "uq_ledger_events_once", "ledger_events", ["kind", "dataset", "study", "round"], unique=True
    )
    op.create_table(
        "ledger_patients",
        sa.Column("dataset", sa.String(length=63), nullable=False),
        sa.Column("digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("since", sa.Integer(), nullable=False),
        sa.Column("until", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("dataset", "digest", "since", name="pk_ledger_patients"),
    )
    op.create_index("ix_ledger_patients_digest", "ledger_patients", ["digest"], unique=False)
    op.create_table(
        "manifests",
        sa.Column("study", sa.String(length=63), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("first_round", sa.Integer(), nullable=False),
        sa.Column("signed", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("study", "version", name="pk_manifests"),
    )
    op.create_table(
        "studies",
        sa.Column("study", sa.String(length=63), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("data_set", sa.String(length=63), nullable=False),
        sa.Column("transcript_round", sa.Integer(), nullable=False),
        sa.Column("transcript", sa.LargeBinary(), nullable=False),
        sa.Column("model_round", sa.Integer(), nullable=False),
        sa.Column("model_digest", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("study", name="pk_studies"),
    )
    op.create_table(
        "evaluations",
        sa.Column("study", sa.String(length=63), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("figures", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["study"], ["studies.study"], name="fk_evaluations_study_studies"),
        sa.PrimaryKeyConstraint("study", "round", name="pk_evaluations"),
    )
    op.create_table(
        "rounds",
        sa.Column("study", sa.String(length=63), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("round_record", sa.LargeBinary(), nullable=True),
        sa.Column("started", sa.Boolean(), nullable=True),
        sa.Column("update_digest", sa.LargeBinary(), nullable=True),
        sa.Column("join_record", sa.LargeBinary(), nullable=True),
        sa.Column("plan_record", sa.LargeBinary(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=True),
        sa.Column("chunk_count", sa.Integer(), nullable=True),
        sa.Column("ciphertext_root", sa.LargeBinary(), nullable=True),
        sa.Column("commit_record", sa.LargeBinary(), nullable=True),
        sa.Column("closing_record", sa.LargeBinary(), nullable=True),
        sa.Column("transcript", sa.LargeBinary(), nullable=True),
        sa.Column("aborted", sa.Boolean(), nullable=True),
        sa.Column("contributors", sa.Text(), nullable=True),
        sa.Column("model_digest", sa.LargeBinary(), nullable=True),
        sa.Column("loss", sa.Float(), nullable=True),
        sa.Column("accuracy", sa.Float(), nullable=True),
        sa.Column("patients", sa.Float(), nullable=True),
        sa.Column("skipped", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["study"], ["studies.study"], name="fk_rounds_study_studies"),
        sa.PrimaryKeyConstraint("study", "round", name="pk_rounds"),
    )


def downgrade() -> None:
    """Refused: a site's journal and ledger are never thrown away."""
    raise NotImplementedError("a site's database is not downgraded")
