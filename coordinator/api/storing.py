"""Blobs are written before the transaction that records them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager

from cipherward.coordinator.blobs.blobs import Blobs
from cipherward.coordinator.store.chunks import Segment
from cipherward.errors import OutageError


async def to_its_end(work: Coroutine[object, object, object]) -> None:
    """Have ``work`` done whole though the caller hangs up, who is let go only then: what it holds keeps others out."""
    doing = asyncio.ensure_future(work)
    try:
        await asyncio.shield(doing)
    finally:
        await asyncio.wait([doing])


@asynccontextmanager
async def taken_back(blobs: Blobs, segments: Sequence[Segment]) -> AsyncIterator[None]:
    """Delete the blobs of ``segments`` if what is done within, which is to record them, fails.

    Not after an outage: the database may have kept a commit of which nobody could tell. What it did not keep is swept
    at the next start. Within must be nothing that a caller who hangs up can cancel (``asyncio.shield``): a
    transaction that was begun is carried out.
    """
    try:
        yield
    except OutageError:
        raise
    except BaseException:
        await asyncio.to_thread(blobs.discard, [segment.blob for segment in segments])
        raise
