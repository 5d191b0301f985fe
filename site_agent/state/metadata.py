"""The one schema of a site's database. Each part of the agent declares its tables on it, beside its code."""

from __future__ import annotations

from sqlalchemy import MetaData

metadata = MetaData(
    naming_convention={  # migrations can only drop what has a known name
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)
