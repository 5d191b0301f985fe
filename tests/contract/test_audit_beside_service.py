"""An audit while the service works: rounds end and old updates are thrown away under it, and it never finds fault."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import threading
from typing import Any

from cipherward.coordinator.audit import ciphertexts
from cipherward.coordinator.audit.source import Source
from cipherward.coordinator.audit.verify import Auditor
from cipherward.crypto.audit import NOT_KEPT, StudyAudit


async def play(world: Any, updates: Any, sites: list[Any], number: int) -> None:
    await world.each(site.join(number) for site in sites)
    await sites[0].until(lambda s: s.round == number and s.plan_digest)
    await world.each(site.contribute(number, updates[i][1]) for i, site in enumerate(sites))
    await sites[0].until(lambda s: s.round == number and s.close_digest)
    await world.each(site.report(number, bytes([number]) * 32) for site in sites)


async def test_rounds_go_on_under_an_audit(world: Any, updates: Any) -> None:
    stop, audits = threading.Event(), []

    def look() -> None:
        source = Source(world.folder)
        auditor = Auditor(source, world.consortium.anchor, lambda *_: None)
        while not stop.is_set():
            audits.extend(auditor.audit(source.studies()))

    async with world.running(world.folder, keep_rounds=1) as address:
        sites = await world.started(address, rounds=4)
        looking = asyncio.create_task(asyncio.to_thread(look))
        try:
            for number in range(1, 5):
                await play(world, updates, sites, number)
        finally:
            stop.set()
            await looking
    assert [one.finding for one in audits if one.finding] == []
    assert len(audits) >= 3 and any(one.added for one in audits)


async def test_what_is_thrown_away_while_it_is_read_is_no_longer_kept(
    world: Any, updates: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(ciphertexts, "BUFFER_BYTES", 1)  # one chunk at a time
    async with world.running(world.folder, keep_rounds=2) as address:
        sites = await world.started(address)
        await play(world, updates, sites, 1)
        await sites[0].until(lambda s: s.round == 2)
    source = Source(world.folder)

    def audit(*, forgotten: bool) -> StudyAudit:
        def progress(_study: str, _number: int, done: int, everything: int) -> None:
            if done < everything:
                shutil.rmtree(world.folder / "blobs", ignore_errors=True)
                with sqlite3.connect(world.folder / "coordinator.db") as connection:
                    connection.execute(
                        "DELETE FROM segments WHERE ? AND chunk_set LIKE 'trial/1/%'", (forgotten,)
                    )

        (found,) = Auditor(source, world.consortium.anchor, progress).audit(source.studies())
        return found

    copy = world.folder.with_name("copy")
    shutil.copytree(world.folder, copy)
    found = audit(forgotten=True)
    assert found.finding is None and found.not_added == {NOT_KEPT: [1]}
    # Control: blobs that the store still names are missing.
    shutil.rmtree(world.folder)
    copy.rename(world.folder)
    found = audit(forgotten=False)
    assert found.finding is not None and (found.finding.round, found.finding.chunk) == (1, 1)
