"""A whole round of a made-up site in the shared-key suite."""

from __future__ import annotations

import os

from cipherward.crypto.labels import Label, digest
from cipherward.crypto.merkle import leaf_hash, root
from cipherward.evaluation.bench.coordinator.site import LoadSite
from cipherward.evaluation.bench.coordinator.steps import Books, Steps
from cipherward.evaluation.bench.coordinator.updates import Update
from cipherward.proto.v1 import coordinator_pb2 as pb
from cipherward.proto.v1.round_pb2 import RelayItem

_SEALED_KEY = 1200
"""About the size of a sealed key. Nobody opens these: sites are given the benchmark's key by other means."""


async def hand_out_keys(site: LoadSite, books: Books, key_digest: bytes) -> None:
    """As the key maker: one sealed key to each site of the roster."""
    for receiver in books.trust.sites:
        body = os.urandom(64)
        item = RelayItem(
            kind=RelayItem.KIND_SHARED_KEY,
            manifest_digest=books.trust.digest,
            sender=site.name,
            receiver=receiver,
            content_digest=key_digest,
            sealed_key=os.urandom(_SEALED_KEY),
            content_length=len(body),
            body_root=root([leaf_hash(body)]),
            chunk_count=1,
        )
        signed = site.sign(Label.RELAY, item)
        messages = [
            pb.RelayMessage(study=books.name, item=signed),
            pb.RelayMessage(study=books.name, index=0, data=body),
        ]
        await site.send("PutRelay", messages)


class SharedKeyRound:
    """One site's round."""

    def __init__(self, site: LoadSite, books: Books, key_digest: bytes) -> None:
        self._site, self._books, self._key_digest = site, books, key_digest
        self._steps = Steps(site, books)

    async def contribute(self, update: Update) -> None:
        """Fetch the key, join, upload, commit."""
        await self._steps.reach(pb.PHASE_OPEN)
        request = pb.GetRelayRequest(study=self._books.name, kind=RelayItem.KIND_SHARED_KEY)
        await self._site.fetch("GetRelay", request)
        await self._steps.join(shared_key_digest=self._key_digest)
        self._plan = await self._steps.plan()
        await self._steps.upload(update.messages(), (update.chunk_count, 0))

    async def commit(self, update: Update) -> None:
        """Sign for it."""
        await self._steps.commit(update)

    async def finish(self) -> list[bytes]:
        """Fetch and verify the sum, report, wait for the end; returns the sum."""
        await self._steps.reach(pb.PHASE_RELEASE)
        close, record = await self._steps.closed(self._plan)
        chunks = await self._steps.sum(record)
        await self._steps.report(close, digest(Label.MODEL_DIGEST, *chunks))
        await self._steps.finished()
        return chunks
