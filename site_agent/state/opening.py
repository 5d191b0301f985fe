"""Opening the site's database: for the owner alone from its first byte on, since SQLite gives its journal
files the mode of the database."""

from __future__ import annotations

import os

from sqlalchemy import Engine

from cipherward.database import open_database
from cipherward.durable import explained
from cipherward.site_agent.state.folder import MIGRATIONS, SiteFolder


def open_state(folder: SiteFolder) -> Engine:
    """An engine on the migrated database, made now if there is none; raises EnvironmentProblem."""
    folder.prepare()
    with explained("open", folder.database):
        os.close(os.open(folder.database, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    return open_database(folder.database_url, MIGRATIONS)
