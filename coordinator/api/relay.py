"""Sealed items between sites: the shared key and the current model. The coordinator cannot open them."""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager

from cipherward.coordinator.api.dispatch import Call
from cipherward.coordinator.api.limits import exceeded
from cipherward.coordinator.api.policy import POLICIES, size
from cipherward.coordinator.api.posting import not_found
from cipherward.coordinator.api.storing import taken_back
from cipherward.coordinator.blobs.writer import SegmentWriter
from cipherward.coordinator.daemon.core import Core
from cipherward.coordinator.daemon.view import StudyView
from cipherward.coordinator.rounds.events import Event, KeyStored, Ticked
from cipherward.coordinator.rounds.state import Phase
from cipherward.coordinator.store.chunks import ChunkSet, Segment
from cipherward.coordinator.store.database import Transaction
from cipherward.coordinator.store.relay import RelayRow
from cipherward.crypto import merkle
from cipherward.crypto.labels import Label
from cipherward.crypto.records import StudyTrust, verify_relay
from cipherward.crypto.signing import verify
from cipherward.crypto.strategies import state_values
from cipherward.errors import ConflictError, FormatError, IdentityError, LateError
from cipherward.proto.v1.coordinator_pb2 import (
    GetRelayRequest,
    PostReply,
    RelayMessage,
    RequestModelRequest,
)
from cipherward.proto.v1.round_pb2 import RelayItem

MAX_KEY_BYTES = 16 * 2**20
CHUNK_BYTES = 2**20
_OVERHEAD = 64  # of a chunk's encryption
TURN_SECONDS = 30.0
"""After which another site may send the same item too."""
OTHERS_SECONDS = 120.0
"""For other sites to send a model, from when the receiver asked."""


def newest_model_round(view: StudyView) -> int:
    """The round after which the newest model is: also while its reports still come in."""
    state = view.state
    return state.round if state.running and state.phase is Phase.RELEASE else state.model_round


class Turns:
    """Who may send a model to a site that asks; times are monotonic. A sender that broke off, or whose model the
    receiver did not want, comes after the others: one site that sends rubbish, or a byte a minute, keeps nobody
    from getting a model.

    In memory: after a restart, or in another process, such a sender is believed once more.
    """

    def __init__(self) -> None:
        self._asked: dict[tuple[str, str], float] = {}
        self._last: set[tuple[str, str, str]] = set()

    def asked(self, study: str, receiver: str, now: float) -> None:
        """The receiver wants a model. Asking again changes nothing."""
        self._asked.setdefault((study, receiver), now)

    def failed(self, study: str, receiver: str, sender: str) -> None:
        """The sender broke off, or the receiver asks again though it has what the sender sent."""
        self._last.add((study, receiver, sender))

    def sent(self, study: str, receiver: str) -> None:
        """A model was stored for the receiver."""
        self._asked.pop((study, receiver), None)

    def check(self, study: str, receiver: str, sender: str, now: float) -> None:
        """Raises LateError for one of the last while others may still send."""
        since = self._asked.get((study, receiver), float("-inf"))
        if (study, receiver, sender) in self._last and now - since < OTHERS_SECONDS:
            raise LateError(
                f"{sender} sent {receiver} no good model before", why="other sites may send theirs first"
            )


class Relay:
    """See the service's definition."""

    def __init__(self, core: Core) -> None:
        self._core = core
        # Who is sending an item at this moment, and since when.
        self._sending: defaultdict[tuple[str, int, str], dict[str, float]] = defaultdict(dict)
        # Models that their receiver has fetched. If it asks again, that one was not good enough.
        self._fetched: set[tuple[str, str, bytes]] = set()
        self._turns = Turns()

    async def put(self, call: Call, messages: AsyncIterator[RelayMessage]) -> PostReply:
        """Store one item: the signed description, then the body."""
        first = await anext(messages, None)
        if first is None or not first.HasField("item"):
            raise FormatError("a relayed item does not begin with its description")
        view = self._core.studies.require(first.study)
        view.require_site(call.name, call.peer.tls_key_digest)
        item = self._verified(call, view, first)
        self._core.traffic.up(view.name, view.state.round, first)
        if item.kind == RelayItem.KIND_SHARED_KEY and await self._is_known_key(view, item):
            return self._reply(view)
        if item.kind == RelayItem.KIND_MODEL:
            self._check_wanted(view, item)
            self._turns.check(view.name, item.receiver, call.name, self._core.clock.monotonic())
        await self._check_room(call, item)
        key = (view.name, item.kind, item.receiver)
        with self._alone(key, call.name):
            name = f"{view.name}/relay/{secrets.token_hex(8)}"
            try:
                segments = await self._body(view, item, messages)
            except BaseException:
                self._turns.failed(view.name, item.receiver, call.name)
                raise
            # Shielded: a caller that hangs up must not come between the body and its row.
            await asyncio.shield(self._store(call, view, item, first, name, segments))
        return self._reply(view)

    @contextmanager
    def _alone(self, key: tuple[str, int, str], sender: str) -> Iterator[None]:
        """One sender at a time for each item, and the next one if the last to begin takes long."""
        senders, now = self._sending[key], self._core.clock.monotonic()
        if sender in senders or (senders and now - max(senders.values()) < TURN_SECONDS):
            raise LateError(f"{key[2]} is being sent this by another site")
        senders[sender] = now
        try:
            yield
        finally:
            del senders[sender]
            if not senders:
                self._sending.pop(key, None)

    async def _check_room(self, call: Call, item: RelayItem) -> None:
        limit = POLICIES[call.rpc].max_stored
        held = await self._core.writer.transaction(lambda t: t.relay.chunks_of(call.name))
        if limit is not None and (held + item.chunk_count) * (CHUNK_BYTES + _OVERHEAD) > limit:
            raise exceeded(
                call.rpc,
                "max_stored",
                f"{call.name} has {held} chunks lying here for other sites",
                f"{size(limit)}, a chunk counted as {size(CHUNK_BYTES)}",
                "Wait until the study has gone on",
            )

    def _verified(self, call: Call, view: StudyView, first: RelayMessage) -> RelayItem:
        if first.item.signer != str(call.peer.identity):
            raise IdentityError(f"{call.name} relays an item of another sender")
        trust: StudyTrust = view.current.trust
        claimed = verify(first.item, Label.RELAY, trust.site(call.name).signing_key, RelayItem)
        item = verify_relay(first.item, trust, claimed.receiver)
        limit = MAX_KEY_BYTES
        if item.kind == RelayItem.KIND_MODEL:
            limit = 4 * state_values(trust.manifest)
        if item.content_length > limit or item.chunk_count > item.content_length // CHUNK_BYTES + 1:
            raise exceeded(
                call.rpc,
                "item_bytes",
                f"a relayed item of {item.content_length} bytes in {item.chunk_count} chunks is refused",
                f"{limit} in this study, in chunks of {CHUNK_BYTES}",
                "",
            )
        return item

    async def _is_known_key(self, view: StudyView, item: RelayItem) -> bool:
        """Whether the receiver has this key. Another key for it is refused: sites never change keys."""
        digest = item.manifest_digest

        def find(t: Transaction) -> RelayRow | None:
            return t.relay.find(view.name, item.kind, item.receiver, manifest=digest)

        known = await self._core.writer.transaction(find)
        if known is None:
            return False
        before = RelayItem.FromString(known.signed.payload)
        if before.content_digest != item.content_digest:
            raise ConflictError(f"{item.receiver} was already sent another key", why="a study has one key")
        return True  # sealed anew, as after a lost answer: the first one is kept

    def _check_wanted(self, view: StudyView, item: RelayItem) -> None:
        newest = newest_model_round(view)
        if item.round != newest:
            raise LateError(f"the model after round {item.round} is not the newest", why=f"that is {newest}")
        if item.receiver not in view.model_wanted_by:
            raise LateError(f"{item.receiver} wants no model any more", why="another site has sent it")

    async def _body(
        self, view: StudyView, item: RelayItem, messages: AsyncIterator[RelayMessage]
    ) -> list[Segment]:
        writer = SegmentWriter(self._core.blobs, 0)
        segments: list[Segment] = []

        async def flush() -> None:
            segment = await asyncio.to_thread(writer.flush)
            if segment is not None:
                segments.append(segment)

        async with taken_back(self._core.blobs, segments):
            async for message in messages:
                self._core.traffic.up(view.name, view.state.round, message)
                if message.HasField("item") or message.index != writer.next_index:
                    raise FormatError("a relayed item's chunks are out of order")
                if message.index >= item.chunk_count or len(message.data) > CHUNK_BYTES + _OVERHEAD:
                    raise FormatError("a relayed item's body is larger than its description says")
                writer.add(message.data, merkle.leaf_hash(message.data))
                if writer.full:
                    await flush()
            await flush()
            body = ChunkSet("", tuple(segments))
            if body.count != item.chunk_count or merkle.root(body.leaves()) != item.body_root:
                raise FormatError("a relayed item's body is not the one that its sender signed for")
        return segments

    async def _store(
        self,
        call: Call,
        view: StudyView,
        item: RelayItem,
        first: RelayMessage,
        name: str,
        segments: list[Segment],
    ) -> None:
        replaced: list[str] = []

        def also(t: Transaction) -> None:
            if item.kind == RelayItem.KIND_MODEL and item.receiver not in t.relay.requests(view.name):
                raise LateError(f"{item.receiver} wants no model any more", why="another site has sent it")
            row = RelayRow(
                view.name,
                item.kind,
                item.manifest_digest,
                item.receiver,
                call.name,
                item.round,
                self._core.clock.now(),
                first.item,
                name,
            )
            old = t.relay.put(row)
            names = [old] if old else []
            if item.kind == RelayItem.KIND_MODEL:
                names += t.relay.drop_models(view.name, item.receiver, item.round)
                t.relay.forget_request(view.name, item.receiver)
            for each in names:
                replaced.extend(t.chunks.drop(each))
            for segment in segments:
                t.chunks.add(name, segment)

        event: Event = Ticked()
        if item.kind == RelayItem.KIND_SHARED_KEY:
            event = KeyStored(item.receiver, view.current.number)
        async with taken_back(self._core.blobs, segments):
            await self._core.studies.apply(view.name, event, also)
        self._turns.sent(view.name, item.receiver)
        await asyncio.to_thread(self._core.blobs.discard, replaced)

    async def get(self, call: Call, request: GetRelayRequest) -> AsyncGenerator[RelayMessage, None]:
        """The newest item for the caller, of that kind and sender."""
        view = self._core.studies.require(request.study)
        view.require_site(call.name, call.peer.tls_key_digest)
        number = view.state.round
        self._core.traffic.up(view.name, number, request)
        named = {name for version in view.versions for name in version.trust.sites} | {""}
        if request.kind not in RelayItem.Kind.values() or request.sender not in named:
            # Not for the database to ask: it may not even be able to write such a name or number.
            raise not_found(f"such item for {call.name}")
        # A key belongs to a version of the manifest; a model is whoever's is newest.
        manifest = view.current.trust.digest if request.kind == RelayItem.KIND_SHARED_KEY else b""

        def find(t: Transaction) -> tuple[RelayRow, ChunkSet] | None:
            row = t.relay.find(view.name, request.kind, call.name, sender=request.sender, manifest=manifest)
            return None if row is None else (row, t.chunks.load(row.chunk_set))

        found = await self._core.writer.transaction(find)
        if found is None:
            raise not_found(f"such item for {call.name} yet")
        row, body = found
        described = RelayMessage(study=view.name, item=row.signed)
        self._core.traffic.down(view.name, number, described)
        yield described
        for index, place in enumerate(body.places()):
            data = await asyncio.to_thread(self._core.blobs.read, place)
            message = RelayMessage(study=view.name, index=index, data=data)
            self._core.traffic.down(view.name, number, message)
            yield message
        if row.kind == RelayItem.KIND_MODEL:
            self._fetched.add((view.name, call.name, row.signed.signature))

    async def request_model(self, call: Call, request: RequestModelRequest) -> PostReply:
        """Ask the other sites for the newest model, unless one is waiting to be fetched."""
        view = self._core.studies.require(request.study)
        view.require_site(call.name, call.peer.tls_key_digest)
        self._core.traffic.up(view.name, view.state.round, request)
        if request.round > view.state.round:
            raise FormatError(
                f"{call.name} has no model after round {request.round}", why="there was none yet"
            )
        newest = newest_model_round(view)

        def also(t: Transaction) -> None:
            row = t.relay.find(view.name, RelayItem.KIND_MODEL, call.name)
            waiting = row is not None and row.round == newest
            if waiting and row:
                if (view.name, call.name, row.signed.signature) not in self._fetched:
                    return
                self._turns.failed(view.name, call.name, row.sender)
            t.relay.request_model(view.name, call.name, request.round)

        if newest > 0:
            self._turns.asked(view.name, call.name, self._core.clock.monotonic())
            await self._core.studies.apply(view.name, Ticked(), also)
        return self._reply(view)

    def _reply(self, view: StudyView) -> PostReply:
        reply = PostReply()
        self._core.traffic.down(view.name, view.state.round, reply)
        return reply
