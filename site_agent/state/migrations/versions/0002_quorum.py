"""The quorum suite's part of the journal.

Revision ID: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_COLUMNS = ("former_joins", "share_root", "acknowledgement", "answered_close")


def upgrade() -> None:
    """Add the columns; older rounds have nothing in them."""
    with op.batch_alter_table("rounds") as rounds:
        for name in _COLUMNS:
            rounds.add_column(sa.Column(name, sa.LargeBinary(), nullable=True))
