"""Durable transactions a second on SQLite and PostgreSQL: ``python benchmarks/stores.py [URL ...]``.

Without URLs: SQLite in a temporary folder, and a private PostgreSQL on a Unix socket beside it, both with their full
durability. A transaction is what a site's commit costs: its record is put and the study's state saved. The bare figure
is 4 KiB written in place and synced, as both databases do it to their logs.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from cipherward.coordinator.rounds.state import Committed, Phase, State
from cipherward.coordinator.store.database import Store
from cipherward.coordinator.store.studies import COMMIT, StudyRow
from cipherward.proto.v1.common_pb2 import Signed

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/contract/kit"))

SECONDS = 2.0
REPEATS = 3
SITES = 100


def rate(action: Callable[[], None]) -> float:
    """Median over the repeats of times a second."""
    rates = []
    for _ in range(REPEATS):
        done, began = 0, time.perf_counter()
        while (spent := time.perf_counter() - began) < SECONDS:
            action()
            done += 1
        rates.append(done / spent)
    return median(rates)


def bare(folder: Path) -> float:
    """Writes of 4 KiB with an fdatasync each, a second."""
    fd = os.open(folder / "bare", os.O_CREAT | os.O_WRONLY, 0o600)
    os.write(fd, bytes(2**20))
    os.fsync(fd)

    def write() -> None:
        os.pwrite(fd, os.urandom(4096), 0)
        os.fdatasync(fd)

    try:
        return rate(write)
    finally:
        os.close(fd)


def commits(url: str) -> tuple[float, float]:
    """Transactions a second that write, and that read only."""
    study = f"bench-{secrets.token_hex(4)}"
    names = [f"site-{number}" for number in range(SITES)]
    state = State(1, Phase.UPLOAD, 0.0, bytes(32), commits={name: Committed(1, bytes(32)) for name in names})
    signed = Signed(payload=os.urandom(300), signature=os.urandom(64))
    store = Store(url)
    with store.transaction() as t:
        t.studies.create(StudyRow(study, state, bytes(32), "w"))

    def write() -> None:
        with store.transaction() as t:
            t.studies.put_post(study, 1, COMMIT, secrets.choice(names), signed)
            t.studies.save(study, state, bytes(32))

    def read() -> None:
        with store.transaction() as t:
            t.studies.post(study, 1, COMMIT, names[0])

    try:
        return rate(write), rate(read)
    finally:
        store.close()


def main(urls: list[str]) -> None:
    """Print a line for each."""
    with contextlib.ExitStack() as stack:
        if not urls:
            from kit_postgresql import private_postgresql

            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            print(f"bare fdatasync: {bare(folder):,.0f}/s")
            server = stack.enter_context(private_postgresql())
            urls = [f"sqlite:///{folder}/coordinator.db", server.new_database()]
        for url in urls:
            writes, reads = commits(url)
            print(f"{url.partition(':')[0]}: {writes:,.0f} commits/s, {reads:,.0f} reads/s")


if __name__ == "__main__":
    main(sys.argv[1:])
