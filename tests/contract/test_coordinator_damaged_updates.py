"""Updates that are damaged or lost between their commit and the sum: the round is given up, and no wrong sum is made
of them. A store that is only away is waited for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from kit_changed_store import Store
from kit_quorum import each, started, to_phase

from cipherward.coordinator.blobs.blobs import Blobs
from cipherward.coordinator.daemon import sums
from cipherward.coordinator.store.chunks import Place
from cipherward.proto.v1 import coordinator_pb2 as pb
from cipherward.proto.v1 import study_pb2

BERT = "1/update/bert/1"


async def shared_key(world: Any, address: str, updates: Any) -> tuple[Any, Callable[[], Awaitable[Any]]]:
    """All but the last have committed; the last one's commit starts the sum."""
    sites = await world.planned(address)
    await each(site.contribute(1, updates[i][1]) for i, site in enumerate(sites[:3]))
    return sites[0], lambda: sites[3].contribute(1, updates[3][1])


async def quorum(world: Any, address: str, _updates: Any) -> tuple[Any, Callable[[], Awaitable[Any]]]:
    """All have committed, and all but the last acknowledged; the last acknowledgement starts the sum."""
    members = await started(world, address)
    await to_phase(members, pb.PHASE_ACKNOWLEDGE)
    await each(member.acknowledge(1) for member in members[:3])
    return members[0].site, lambda: members[3].acknowledge(1)


def flipped(blob: Path) -> None:
    """One bit in the middle, the lowest of a residue: what it makes is a ciphertext as good as any."""
    content = bytearray(blob.read_bytes())
    content[len(content) // 2 // 8 * 8] ^= 1
    blob.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(flipped, "is not what was uploaded"), (Path.unlink, "is lost")],
    ids=["bit-flipped", "blob-gone"],
)
@pytest.mark.parametrize("ready", [shared_key, quorum])
async def test_a_damaged_update_ends_the_round_without_a_sum(
    ready: Any, damage: Any, reason: str, world: Any, updates: Any
) -> None:
    async with world.running(world.folder) as address:
        anna, last = await ready(world, address, updates)
        damage(Store(world.folder, world.coordinator.signing_key).blob(BERT))
        await last()
        after = await anna.until(lambda s: s.round == 2 or s.phase in (pb.PHASE_UNSEAL, pb.PHASE_RELEASE))
        assert (after.round, after.phase) == (2, pb.PHASE_OPEN), "there is a sum of something else"
        (figures,) = (await world.operator(address).status()).history
        assert figures.aborted
        assert figures.reason.startswith("the sum could not be made: chunk "), figures.reason
        assert BERT in figures.reason and figures.reason.endswith(reason), figures.reason


async def test_blobs_that_are_away_are_waited_for(
    world: Any, updates: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sums, "RETRY_SECONDS", 0.2)
    blobs, away = world.folder / "blobs", world.folder / "away"
    async with world.running(world.folder) as address:
        sites = await world.planned(address)
        await each(site.contribute(1, updates[i][1]) for i, site in enumerate(sites[:3]))
        await sites[3].upload(1, updates[3][1])
        blobs.rename(away)
        blobs.mkdir()  # as where a volume is not mounted
        await sites[3].commit(1, updates[3][1])
        waited = ""
        for _ in range(100):
            waited += "".join(capsys.readouterr())
            if waited.count("sum waits") >= 2:
                break
            await asyncio.sleep(0.1)
        else:
            raise AssertionError(f"no two tries: {waited}")
        assert (await sites[0].snapshot()).phase == pb.PHASE_SUM
        blobs.rmdir()
        away.rename(blobs)
        await sites[0].until(lambda s: s.phase == pb.PHASE_RELEASE)


async def test_an_abort_amid_a_sum_is_no_damage(
    world: Any, updates: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """It deletes the updates that are being added up."""
    reading, deleted, ended = threading.Event(), threading.Event(), threading.Event()
    read, delete, run = Blobs.read, Blobs.delete, sums.Sums._run

    def slow_read(self: Blobs, place: Place) -> bytes:
        reading.set()
        assert deleted.wait(10)
        return read(self, place)

    def told_delete(self: Blobs, names: Any) -> None:
        delete(self, names)
        if reading.is_set():
            deleted.set()

    async def told_run(self: sums.Sums, *args: Any) -> None:
        await run(self, *args)
        ended.set()

    async with world.running(world.folder) as address:
        anna, last = await shared_key(world, address, updates)
        monkeypatch.setattr(Blobs, "read", slow_read)
        monkeypatch.setattr(Blobs, "delete", told_delete)
        monkeypatch.setattr(sums.Sums, "_run", told_run)
        await last()
        assert await asyncio.to_thread(reading.wait, 10)
        operator = world.operator(address)
        order = operator.order(anna.trust.digest, study_pb2.OperatorCommand.ACTION_ABORT, "enough")
        await operator.stub.AbortStudy(order)
        assert await asyncio.to_thread(ended.wait, 15)
        said = "".join(capsys.readouterr())
        assert "life=aborted" in said and "sum failed" not in said and "sum waits" not in said, said
