"""Backups of a running coordinator as docs/run-consortium.md has them made: the database first, then the blobs."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kit_postgresql import PrivatePostgresql
from kit_process import LAUNCHER, process

from cipherward.proto.v1 import coordinator_pb2 as pb


def back_up_sqlite(folder: Path, copy: Path) -> None:
    """What `sqlite3 coordinator.db '.backup FILE'` does."""
    with sqlite3.connect(folder / "coordinator.db") as live, sqlite3.connect(copy / "coordinator.db") as kept:
        live.backup(kept)
    live.close()
    kept.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_a_backup_of_a_running_service_is_whole(
    world: Any, updates: Any, kind: str, request: pytest.FixtureRequest
) -> None:
    copy = world.folder.parent / "restored"
    server: PrivatePostgresql | None = None
    options: tuple[str, ...] = ()
    if kind == "postgresql":
        server = request.getfixturevalue("postgresql")
        options = ("--database", server.new_database())
    with process(world.folder, *options) as (_, address):
        sites = await world.planned(address, rounds=1)
        trust = sites[0].trust
        await sites[0].contribute(1, updates[0][1])
        copy.mkdir(mode=0o700)
        if server is None:
            back_up_sqlite(world.folder, copy)
        else:
            restored = server.new_database()
            server.copy(options[1], restored)
            options = ("--database", restored)
        await sites[1].upload(
            1, updates[1][1]
        )  # after the database, before the blobs: it is only stray there
        not_the_database = shutil.ignore_patterns("coordinator.db*", "lock", "address", "log")
        shutil.copytree(world.folder, copy, ignore=not_the_database, dirs_exist_ok=True)
    checked = subprocess.run(
        [sys.executable, "-c", LAUNCHER, "fsck", "--dir", str(copy), *options, "--json"],
        capture_output=True,
        text=True,
    )
    assert json.loads(checked.stdout)["problems"] == [], checked.stdout + checked.stderr
    with process(copy, *options) as (_, address):
        sites = world.sites(address, trust)
        for i in (1, 2, 3):
            await sites[i].contribute(1, updates[i][1])
        await sites[0].until(lambda s: s.phase == pb.PHASE_RELEASE)
