"""Which ciphertexts of ended rounds are on the coordinator's disk, and that a smaller number takes effect."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from cipherward.coordinator.daemon.retention import Retention
from cipherward.crypto.records import StudyTrust
from cipherward.errors import NotFoundError
from cipherward.ids import Digest
from cipherward.proto.v1 import coordinator_pb2 as pb
from cipherward.proto.v1 import study_pb2


def kept(folder: Path) -> dict[int, list[str]]:
    """Kinds of chunk sets by round; each must be complete on disk, and nothing else may be there."""
    with sqlite3.connect(f"file:{folder / 'coordinator.db'}?mode=ro", uri=True) as connection:
        rows = connection.execute("SELECT chunk_set, blob FROM segments").fetchall()
    files = {path.name for path in (folder / "blobs").rglob("*") if path.is_file()}
    assert {blob for _, blob in rows} <= files
    found: dict[int, list[str]] = {}
    for name in sorted({name for name, _ in rows}):
        _, number, *rest = name.split("/")
        if number.isdecimal():
            found.setdefault(int(number), []).append("/".join(rest))
    return found


async def play(world: Any, updates: Any, sites: list[Any], number: int, committing: int) -> None:
    """One round, in which the last sites may upload and not commit."""
    await world.each(site.join(number) for site in sites)
    await sites[1].until(lambda s: s.round == number and s.plan_digest)
    # An attempt that is given up.
    await sites[0].upload(number, updates[1][1][:1], attempt=1)
    await sites[0].upload(number, updates[0][1], attempt=2)
    await sites[0].commit(number, updates[0][1], attempt=2)
    for site, (_, chunks) in list(zip(sites, updates, strict=True))[1:]:
        await site.upload(number, chunks)
        if sites.index(site) < committing:
            await site.commit(number, chunks)
    await sites[0].until(lambda s: s.round == number and s.close_digest)
    await world.each(site.report(number, bytes([number]) * 32) for site in sites[:committing])


async def test_updates_in_the_sum_are_kept_for_so_many_rounds(world: Any, updates: Any) -> None:
    deadlines = study_pb2.Deadlines(join_window=60, upload=2, verify=60)
    async with world.running(world.folder, keep_rounds=2) as address:
        sites = await world.started(address, rounds=3, deadlines=deadlines)
        for number, committing in ((1, 4), (2, 4), (3, 3)):
            await play(world, updates, sites, number, committing)
        await sites[0].until(lambda s: s.state != pb.STUDY_STATE_RUNNING)
        async with world.refused(NotFoundError, "any more"):
            await sites[0].fetch_sum(1)
    three = ["sum", "update/anna/2", "update/bert/1", "update/cora/1"]
    assert kept(world.folder) == {2: [*three, "update/dora/1"], 3: three}
    for keep, left in ((None, {3: three}), (0, {3: ["sum"]})):
        async with world.running(world.folder, keep_rounds=keep):
            pass
        assert kept(world.folder) == left


async def test_an_older_sum_is_kept_for_auditors_only(world: Any, updates: Any) -> None:
    async with world.running(world.folder, keep_rounds=3) as address:
        sites = await world.started(address, rounds=3)
        for number in (1, 2, 3):
            await play(world, updates, sites, number, 4)
        assert kept(world.folder)[1][0] == "sum" and await sites[0].fetch_sum(2)
        async with world.refused(NotFoundError, "any more"):
            await sites[0].fetch_sum(1)


def test_a_key_that_all_sites_hold_makes_the_default_smaller() -> None:
    def trust(suite: str) -> Any:
        entry = study_pb2.SuiteEntry(name=suite)
        return StudyTrust(study_pb2.Manifest(suite=entry), Digest(b""))

    assert Retention(None).rounds(trust("quorum")) == 10
    assert Retention(None).rounds(trust("shared-key")) == 1
    assert Retention(7).rounds(trust("shared-key")) == 7
