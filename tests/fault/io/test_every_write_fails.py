"""Every call by which a site or a coordinator changes a file is made to fail, one after the other: once with EIO, and
from then on with ENOSPC. Each time our own error says so in one line, fsck finds no problem, and the same step, done
again by the same process (after ENOSPC at a site: by a new one), gives what it gives without the fault.

Only some calls are tried by default; CW_FAULT_STRIDE=1 tries each of them, which takes about ten minutes.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

SITE = ("start", "admitted", "joined", "committed", "released")
COORDINATOR = ("start", "study", "keys", "joins", "upload", "commits", "reports")

Enumerated = Callable[..., dict[str, int]]


def stride(default: int) -> int:
    return int(os.environ.get("CW_FAULT_STRIDE", default))


@pytest.mark.slow
def test_some_writes_of_a_site(enumerated: Enumerated) -> None:
    counted = enumerated("io_site.py", stride(17), *SITE)
    assert set(counted) == {f"{step} {kind}" for step in SITE for kind in ("EIO", "ENOSPC")}
    assert all(calls > 15 for calls in counted.values()), counted  # faults were met


@pytest.mark.slow
def test_some_writes_of_a_coordinator(enumerated: Enumerated) -> None:
    counted = enumerated("io_coordinator.py", stride(13), "upload", "commits")
    assert all(calls > 13 for calls in counted.values()), counted


@pytest.mark.slow
def test_most_writes_of_a_site(enumerated: Enumerated) -> None:
    enumerated("io_site.py", stride(5), *SITE)


@pytest.mark.slow
def test_writes_at_every_step_of_a_coordinator(enumerated: Enumerated) -> None:
    enumerated("io_coordinator.py", stride(11), *COORDINATOR)
