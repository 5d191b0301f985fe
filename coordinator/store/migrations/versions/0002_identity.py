"""The database gets a name, and counts the processes that use it."""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table and its one row."""
    identity = op.create_table(
        "identity",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
    )
    op.bulk_insert(identity, [{"id": 1, "name": secrets.token_hex(16), "generation": 0}])
