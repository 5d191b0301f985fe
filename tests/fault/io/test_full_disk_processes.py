"""The disk under a running coordinator, and under a running site, fills in mid-round: the study stalls and the log says
why, what only reads goes on, and when there is room again the study ends with the right model at every site."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cipherward.coordinator.fsck import Places
from cipherward.coordinator.fsck import check as check_coordinator
from cipherward.site_agent.fsck import check as check_site

NAMES = ("alpha", "beta", "gamma")
UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


def check_finished(world: Any) -> None:
    """All rounds were closed with everybody's update, and everything on disk holds together."""
    world.wait(*NAMES, seconds=120)
    for name in NAMES:
        assert world.status(name, "heart-1")["state"] == "finished"
    assert len({world.status(name, "heart-1")["model_digest"] for name in NAMES}) == 1
    history = world.study("heart-1").history
    assert [(entry.round, sorted(entry.contributors)) for entry in history] == [(1, [*NAMES]), (2, [*NAMES])]
    world.kill("hub")
    assert check_coordinator(Places(world.folder / "hub")).problems == []
    for name in NAMES:
        assert check_site(world.folder / name).problems == []
        ledger = world.status(name, "heart-1")
        assert ledger["rounds"][-1]["step"] == "finished"


def begun(world: Any, suite: str, **hub: str) -> None:
    world.start_coordinator(**hub)
    world.start_study(
        world.manifest("heart-1", suite=suite, rounds=2, minimum=3, join_window=120, upload=120, short=60)
    )


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["shared-key", "quorum"])
def test_the_coordinators_disk_is_full_for_a_while(
    make_consortium: Any, make_faults: Callable[[Path], Any], suite: str
) -> None:
    world = make_consortium(*NAMES)
    faults = make_faults(world.folder / "hub")
    begun(world, suite, **faults.environment)
    for name in NAMES:
        world.start_site(name)
    world.wait_for(lambda: '"joined"' in world.log("alpha"), "a join")
    faults.arm("ENOSPC")
    world.wait_for(lambda: "disk is full" in world.log("hub"), "a full disk")
    at = world.study("heart-1")  # reads go on
    lines, began = len(world.log("hub").splitlines()), time.monotonic()
    time.sleep(3)
    per_second = (len(world.log("hub").splitlines()) - lines) / (time.monotonic() - began)
    assert per_second < 20, world.log("hub")[-4000:]
    now = world.study("heart-1")
    assert (now.round, now.phase) == (at.round, at.phase)
    assert all(process.poll() is None for process in world.processes.values())
    assert "Traceback" not in world.log("hub") and '"exception"' not in world.log("hub")
    assert all("refused" not in world.log(name) for name in NAMES)
    faults.disarm()
    check_finished(world)


@pytest.mark.slow
@pytest.mark.parametrize("most", [60_000, 1000], ids=["but its log may", "nor may its log"])
def test_the_coordinators_files_may_not_grow_for_a_while(make_consortium: Any, most: int) -> None:
    """The kernel's own refusal in the middle of writes, put on the running process and lifted from outside: of every
    write that ends beyond ``most`` bytes in its file, as all of the database's do."""
    world = make_consortium(*NAMES)
    begun(world, "shared-key")
    for name in NAMES:
        world.start_site(name)
    world.wait_for(lambda: '"joined"' in world.log("alpha"), "a join")
    hub, wal = world.processes["hub"], world.folder / "hub/coordinator.db-wal"
    assert wal.stat().st_size > 60_000
    resource.prlimit(hub.pid, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    size, at = wal.stat().st_size, world.study("heart-1")  # reads go on
    if most > 1000:
        world.wait_for(lambda: "disk I/O error" in world.log("hub"), "a write that is refused")
    time.sleep(4)
    assert hub.poll() is None
    now = world.study("heart-1")
    assert (now.round, now.phase, wal.stat().st_size) == (at.round, at.phase, size)
    assert all("round finished" not in world.log(name) for name in NAMES)
    assert all("UNKNOWN" not in world.log(name) for name in NAMES), "a call failed on its own log line"
    resource.prlimit(hub.pid, resource.RLIMIT_FSIZE, UNLIMITED)
    check_finished(world)


@pytest.mark.slow
def test_a_sites_disk_is_full_for_a_while(make_consortium: Any, make_faults: Callable[[Path], Any]) -> None:
    world = make_consortium(*NAMES)
    faults = make_faults(world.folder / "alpha")
    begun(world, "shared-key")
    world.start_site("alpha", **faults.environment)
    for name in NAMES[1:]:
        world.start_site(name)
    world.wait_for(lambda: '"training"' in world.log("alpha"), "the first training")
    faults.arm("ENOSPC")
    world.wait_for(lambda: "disk is full" in world.log("alpha"), "a full disk")
    assert all(process.poll() is None for process in world.processes.values())
    assert "Traceback" not in world.log("alpha")
    faults.disarm()
    check_finished(world)
