"""A client process: holds its part of the sites and does with them what the benchmark says, one line of JSON at a
time. ``python -m cipherward.evaluation.bench.coordinator.client FOLDER FIRST NAME...``; FIRST is the first site's
number.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from cipherward.crypto.manifest import verify_manifest
from cipherward.crypto.pki.armour import Kind, unarmour_signed
from cipherward.crypto.pki.store import load_member
from cipherward.crypto.sealing import SealingKey
from cipherward.durable import read_file
from cipherward.errors import CipherwardError
from cipherward.evaluation.bench.coordinator.checking import SiteChecking
from cipherward.evaluation.bench.coordinator.quorum_site import QuorumRound, acknowledgement
from cipherward.evaluation.bench.coordinator.shared_key_site import SharedKeyRound, hand_out_keys
from cipherward.evaluation.bench.coordinator.site import LoadSite, Timings
from cipherward.evaluation.bench.coordinator.steps import Books, Steps, all_of
from cipherward.evaluation.bench.coordinator.updates import (
    Update,
    exact_sum,
    stored_chunks,
    write_update,
)
from cipherward.ids import Role
from cipherward.proto.v1 import coordinator_pb2 as pb
from cipherward.site_agent.journal.outbox import Outbox

_PR_SET_PDEATHSIG = 1
_CONNECTING = 25
"""Sites of one process that dial at a time."""


class Client:
    """See the module. Commands are its public methods; all times are of the monotonic clock, which processes
    share."""

    def __init__(self, folder: Path, first: int, names: list[str]) -> None:
        self._folder = folder
        self._timings: Timings = defaultdict(list)
        now = time.time()
        self._sites = [
            LoadSite(load_member(folder / "sites" / name, Role.SITE, now), first + index, self._timings)
            for index, name in enumerate(names)
        ]
        self._books: dict[str, Books] = {}
        self._steps: dict[str, Steps] = {}
        self._rounds: dict[str, SharedKeyRound] = {}
        self._threads = ThreadPoolExecutor(max_workers=1)

    def _study(self, study: str) -> Books:
        if study not in self._books:
            signed = unarmour_signed(Kind.MANIFEST, read_file(self._folder / f"{study}.pem"))
            anchor = self._sites[0].member.anchor
            self._books[study] = Books(signed, verify_manifest(signed, anchor))
        return self._books[study]

    async def connect(self, address: str) -> None:
        """All sites dial and watch."""
        gate = asyncio.Semaphore(_CONNECTING)

        async def dial(site: LoadSite) -> None:
            async with gate:
                await site.connect(address)

        await all_of(dial(site) for site in self._sites)

    async def disconnect(self) -> None:
        """All sites hang up."""
        await all_of(site.close() for site in self._sites)

    async def timings(self) -> dict[str, list[float]]:
        """Seconds of each call so far, by RPC; they are forgotten."""
        found = dict(self._timings)
        self._timings.clear()
        return found

    # Uploads alone

    async def join(self, study: str, key_digest: str) -> None:
        """All sites join, with the shared key's digest or a round key each, and accept the plan."""
        books = self._study(study)
        self._steps = {site.name: Steps(site, books) for site in self._sites}

        async def join(steps: Steps) -> None:
            if key_digest:
                await steps.join(shared_key_digest=bytes.fromhex(key_digest))
            else:
                await steps.join(round_key=SealingKey.generate().public())
            await steps.plan()

        await all_of(join(steps) for steps in self._steps.values())

    async def upload(self, updates: list[dict[str, Any]], shares: int) -> float:
        """All sites upload at once; when the last was told that everything is durable."""
        await all_of(
            steps.upload(update.messages(), (update.chunk_count, shares))
            for steps, update in self._pairs(updates)
        )
        return time.monotonic()

    async def commit(self, updates: list[dict[str, Any]]) -> None:
        """All sites commit."""
        await all_of(steps.commit(update) for steps, update in self._pairs(updates))

    def _pairs(self, updates: list[dict[str, Any]]) -> list[tuple[Steps, Update]]:
        found = [read_update(raw) for raw in updates]
        return [(steps, found[steps.site.number % len(found)]) for steps in self._steps.values()]

    async def acknowledge(self, study: str) -> None:
        """All sites say that every share opened: what stands for shares here nobody opens."""
        books = self._study(study)

        async def acknowledge(steps: Steps) -> None:
            plan = await steps.reach_plan(pb.PHASE_ACKNOWLEDGE)
            await steps.post("PostAcknowledgement", acknowledgement(steps.site, books, plan))

        await all_of(acknowledge(steps) for steps in self._steps.values())

    async def fetch_sum(self, path: str) -> int:
        """One site fetches the sum, verifies that it is the close record's, and leaves it in a file; its
        chunks."""
        steps = next(iter(self._steps.values()))
        plan = await steps.reach_plan(pb.PHASE_UNSEAL, pb.PHASE_RELEASE)
        _, record = await steps.closed(plan)
        return write_update(Path(path), await steps.sum(record)).chunk_count

    async def check(
        self, study: str, address: str, path: str, count: int, updates: list[dict[str, Any]]
    ) -> list[tuple[float, int]]:
        """Each site in turn checks its part of the sum; processor seconds and bytes down of each. ``updates``: as in
        ``upload``."""
        books, chunks, sent = (
            self._study(study),
            stored_chunks(path, count),
            [read_update(raw) for raw in updates],
        )
        found = []
        for steps in self._steps.values():
            plan, close = await steps.reach_plan(pb.PHASE_UNSEAL), await steps.closing()
            outbox = Outbox(Path(f"{path}-outbox"))
            outbox.put_chunks(1, sent[steps.site.number % len(sent)].chunks())
            one = SiteChecking(steps.site, address, books, plan, close, outbox)
            found.append(await asyncio.to_thread(one.run, chunks))
            outbox.discard()
        return found

    # A server that drops everything

    async def bare_connect(self, address: str) -> None:
        """All sites dial it."""
        await all_of(site.connect_bare(address) for site in self._sites)

    async def bare_upload(self, updates: list[dict[str, Any]]) -> float:
        """The same messages as ``upload``; when the last call had returned."""
        found = [read_update(raw) for raw in updates]
        await all_of(site.bare_upload(found[site.number % len(found)].messages()) for site in self._sites)
        return time.monotonic()

    async def bare_close(self) -> None:
        """Hang up."""
        await all_of(site.close_bare() for site in self._sites)

    # Whole rounds

    async def hand_out_keys(self, study: str, key_digest: str) -> None:
        """The first site is the key maker."""
        await hand_out_keys(self._sites[0], self._study(study), bytes.fromhex(key_digest))

    async def contribute(self, study: str, key_digest: str, updates: list[dict[str, Any]]) -> None:
        """Shared-key: all sites join and upload."""
        books, digest = self._study(study), bytes.fromhex(key_digest)
        self._rounds = {site.name: SharedKeyRound(site, books, digest) for site in self._sites}
        await all_of(
            self._rounds[site.name].contribute(read_update(raw))
            for site, raw in zip(self._sites, updates, strict=True)
        )

    async def commit_all_but(self, updates: list[dict[str, Any]], last: str) -> None:
        """Shared-key: all sites but the one of that name commit."""
        await all_of(
            self._rounds[site.name].commit(read_update(raw))
            for site, raw in zip(self._sites, updates, strict=True)
            if site.name != last
        )

    async def commit_one(self, updates: list[dict[str, Any]], last: str) -> None:
        """Shared-key: the site of that name commits, if it is here."""
        for site, raw in zip(self._sites, updates, strict=True):
            if site.name == last:
                await self._rounds[site.name].commit(read_update(raw))

    async def finish(self, path: str) -> int:
        """Shared-key: all sites fetch the sum and report; the sum is left in a file; its chunks."""
        sums: list[list[bytes]] = []

        async def finish(mine: SharedKeyRound) -> None:
            chunks = await mine.finish()
            sums[:] = [chunks]  # all are the same: each was found under the close record's root

        await all_of(finish(mine) for mine in self._rounds.values())
        return write_update(Path(path), sums[0]).chunk_count

    async def quorum_round(self, study: str, sites: int) -> tuple[int, int]:
        """All sites go through a whole round; how many were late with acknowledgement and answer."""
        books = self._study(study)
        exact = exact_sum(range(sites), books.length)
        late = await all_of(
            QuorumRound(site, books, self._folder, exact, self._threads).run() for site in self._sites
        )
        return sum(one for one, _ in late), sum(one for _, one in late)


def read_update(raw: dict[str, Any]) -> Update:
    """As ``asdict`` and JSON left it."""
    roots = {name: bytes.fromhex(raw[name]) for name in ("ciphertext_root", "share_root")}
    return Update(**{**raw, **roots})


async def _serve(client: Client) -> None:
    """Commands from stdin, ``{"do": NAME, ...}``; replies ``{"done": RESULT}`` or ``{"failed": WHY}``."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        command = json.loads(line)
        try:
            action: Callable[..., Awaitable[object]] = getattr(client, command.pop("do"))
            reply: dict[str, object] = {"done": await action(**command)}
        except (CipherwardError, TimeoutError, grpc.RpcError) as error:
            reply = {"failed": str(error) or type(error).__name__}
        print(json.dumps(reply), flush=True)  # noqa: T201


def main() -> None:
    """Serve the parent until it goes."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops its clients
    folder, first, *names = sys.argv[1:]
    client = Client(Path(folder), int(first), names)
    print(json.dumps({"done": None}), flush=True)  # noqa: T201
    asyncio.run(_serve(client))


if __name__ == "__main__":
    main()
