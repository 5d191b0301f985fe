"""Sealed items between sites, and who asked for a model, within a transaction."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, and_, delete, func, select

from cipherward.coordinator.store.schema import model_requests, relay, segments
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.round_pb2 import RelayItem


@dataclass(frozen=True, slots=True)
class RelayRow:
    """One item, its body in a chunk set. The coordinator cannot open it."""

    study: str
    kind: int
    manifest: bytes
    receiver: str
    sender: str
    round: int
    stored_at: float
    signed: Signed
    chunk_set: str


class RelayTable:
    """Reads and writes; the caller's transaction makes them atomic."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def put(self, row: RelayRow) -> str | None:
        """Store an item in place of the sender's earlier one; returns that one's chunk set."""
        key = and_(
            relay.c.study == row.study,
            relay.c.kind == row.kind,
            relay.c.manifest == row.manifest,
            relay.c.receiver == row.receiver,
            relay.c.sender == row.sender,
        )
        old = self._connection.execute(select(relay.c.chunk_set).where(key)).scalar_one_or_none()
        self._connection.execute(delete(relay).where(key))
        self._connection.execute(
            relay.insert().values(
                study=row.study,
                kind=row.kind,
                manifest=row.manifest,
                receiver=row.receiver,
                sender=row.sender,
                round=row.round,
                stored_at=row.stored_at,
                signed=row.signed.SerializeToString(),
                chunk_set=row.chunk_set,
            )
        )
        return old

    def find(
        self, study: str, kind: int, receiver: str, *, sender: str = "", manifest: bytes = b""
    ) -> RelayRow | None:
        """The newest item for ``receiver``, of ``sender`` and ``manifest`` if they are given."""
        query = select(relay).where(
            relay.c.study == study, relay.c.kind == kind, relay.c.receiver == receiver
        )
        if sender:
            query = query.where(relay.c.sender == sender)
        if manifest:
            query = query.where(relay.c.manifest == manifest)
        row = self._connection.execute(
            query.order_by(relay.c.round.desc(), relay.c.stored_at.desc()).limit(1)
        ).one_or_none()
        if row is None:
            return None
        return RelayRow(
            row.study,
            row.kind,
            row.manifest,
            row.receiver,
            row.sender,
            row.round,
            row.stored_at,
            Signed.FromString(row.signed),
            row.chunk_set,
        )

    def chunks_of(self, sender: str) -> int:
        """Chunks of all items that the sender has lying here."""
        total = select(func.sum(segments.c.count)).join(relay, relay.c.chunk_set == segments.c.chunk_set)
        return self._connection.execute(total.where(relay.c.sender == sender)).scalar_one() or 0

    def drop_models(self, study: str, receiver: str, before_round: int) -> list[str]:
        """Forget models for ``receiver`` that are older; returns their chunk sets."""
        old = and_(
            relay.c.study == study,
            relay.c.kind == RelayItem.KIND_MODEL,
            relay.c.receiver == receiver,
            relay.c.round < before_round,
        )
        names = list(self._connection.execute(select(relay.c.chunk_set).where(old)).scalars())
        self._connection.execute(delete(relay).where(old))
        return names

    def request_model(self, study: str, receiver: str, round_number: int) -> None:
        """``receiver`` wants the newest model; it has the one after ``round_number``."""
        self.forget_request(study, receiver)
        self._connection.execute(
            model_requests.insert().values(study=study, receiver=receiver, round=round_number)
        )

    def forget_request(self, study: str, receiver: str) -> None:
        """``receiver`` has been sent a model."""
        self._connection.execute(
            delete(model_requests).where(
                model_requests.c.study == study, model_requests.c.receiver == receiver
            )
        )

    def requests(self, study: str) -> tuple[str, ...]:
        """Who wants a model."""
        found = select(model_requests.c.receiver).where(model_requests.c.study == study)
        return tuple(sorted(self._connection.execute(found).scalars()))
