"""What collective verification costs a site: bytes down and processor time, by the agent's own code and connection."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

from cipherward.crypto.merkle import leaf_hash
from cipherward.crypto.records import Closed, Plan, verify_ending
from cipherward.crypto.transcript import transcript_start
from cipherward.evaluation.bench.coordinator.clients import Clients
from cipherward.evaluation.bench.coordinator.ingest import check_sum, make_material
from cipherward.evaluation.bench.coordinator.site import LoadSite
from cipherward.evaluation.bench.coordinator.steps import ROUND, Books
from cipherward.evaluation.bench.coordinator.updates import stored_chunks
from cipherward.evaluation.bench.coordinator.world import World, median
from cipherward.evaluation.bench.crypto import Report
from cipherward.evaluation.bench.records import Record
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.coordinator_pb2 import DataChunk
from cipherward.site_agent.client.channel import open_channel
from cipherward.site_agent.client.coordinator import CoordinatorClient
from cipherward.site_agent.daemon.quorum.checking import Checking
from cipherward.site_agent.daemon.study import Study
from cipherward.site_agent.daemon.sums import StoredSum
from cipherward.site_agent.journal.outbox import Outbox

COLLUDERS = 1


class _Counting(CoordinatorClient):
    """Counts what comes."""

    received = 0

    def update_chunks(
        self, study: str, round_number: int, indices: list[int], *, without_own: bool
    ) -> Iterator[DataChunk]:
        """As the agent's; counted."""
        for chunk in super().update_chunks(study, round_number, indices, without_own=without_own):
            self.received += chunk.ByteSize()
            yield chunk


class SiteChecking:
    """One made-up site with the agent's real ``Checking``."""

    def __init__(
        self, site: LoadSite, address: str, books: Books, plan: Plan, close: Signed, outbox: Outbox
    ) -> None:
        """``outbox`` has what the site uploaded, as its first attempt."""
        self._site, self._books, self._address, self._outbox = site, books, address, outbox
        transcript = transcript_start(books.name, books.trust.digest)
        self._closed = cast(Closed, verify_ending(close, books.trust, ROUND, transcript, lambda: plan))

    def run(self, chunks: list[bytes]) -> tuple[float, int]:
        """Check this site's part of the sum: processor seconds of the whole process (TLS, hashing, adding, signing),
        and bytes down. Counting takes time too: they are counted when all is done once more."""
        leaves: list[bytes] = [leaf_hash(chunk) for chunk in chunks]
        total = StoredSum(self._books.length, leaves, lambda: iter(chunks))
        channel = open_channel(self._address, self._site.member.channel_credentials())
        with channel:
            started = time.process_time()
            self._checking(CoordinatorClient(channel)).check_own_part(ROUND, self._closed, total)
            seconds = time.process_time() - started
            counting = _Counting(channel)
            self._checking(counting).check_own_part(ROUND, self._closed, total)
        return seconds, counting.received

    def _checking(self, client: CoordinatorClient) -> Checking:
        # What Checking uses of a study, without a folder and a database.
        study = SimpleNamespace(
            name=self._books.name,
            client=client,
            site=SimpleNamespace(name=self._site.name, sign=self._site.sign),
            trust=lambda _round: self._books.trust,
            layout=lambda _trust: SimpleNamespace(length=self._books.length),
            outbox=lambda _round: self._outbox,
        )
        return Checking(cast(Study, study))


def checking(world: World, clients: Clients, parameters: int, report: Report) -> None:
    """All sites upload and close a round; then each of them checks its part of the sum."""
    folder, sites = world.folder / "uploads", len(world.names)
    folder.mkdir()
    material = make_material(folder, "quorum", parameters, sites)
    trust = world.study("checking", "quorum", parameters, COLLUDERS)
    world.start_study(trust)
    clients.everywhere("join", study="checking", key_digest="")
    clients.everywhere("upload", updates=material.wire(), shares=sites)
    clients.everywhere("commit", updates=material.wire())
    clients.everywhere("acknowledge", study="checking")
    paths = [str(world.folder / f"sum-{number}") for number in range(len(clients.parts))]
    counts = clients.each("fetch_sum", [{"path": path} for path in paths])
    check_sum(trust, material, stored_chunks(paths[0], counts[0]))
    found = [
        one
        for part in clients.each(
            "check",
            [
                {
                    "study": "checking",
                    "address": world.address,
                    "path": path,
                    "count": count,
                    "updates": material.wire(),
                }
                for path, count in zip(paths, counts, strict=True)
            ],
        )
        for one in part
    ]
    spent, down = [seconds for seconds, _ in found], sum(size for _, size in found) / sites / parameters
    world.note(
        f"  {sites} sites, c = {COLLUDERS}: {down / 4:.2f} models of 4 B a parameter down a site, {median(spent):.2f} "
        f"processor seconds (at most {max(spent):.2f}); every chunk was found right"
    )
    label = f"{trust.params.suite}:{trust.params.name}"
    for figure, value, unit, baseline in (
        ("checking_down", down, "B/param", 4.0),
        ("checking", max(spent), "cpu s", None),
    ):
        report(Record(figure, value, unit, label, parameters, sites, len(clients.parts), "cpu", baseline))
