"""Sealed items between sites, by way of a coordinator that must not read them: the shared key and models.

The body is AES-256-GCM in chunks under a fresh key, nonce = chunk index; that key is sealed by HPKE to the
receiver's long-term key, with who, what, when and the content's digest in its info. The signed item names
the root over the body's chunks. A model has no other way to a site that was away: old sums are never
replayed.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable, Iterator

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cipherward.crypto import merkle
from cipherward.crypto.labels import Label
from cipherward.crypto.randomness import hedged_key
from cipherward.crypto.records import StudyTrust, verify_relay
from cipherward.crypto.sealing import SealingKey, seal
from cipherward.crypto.signing import SigningKey
from cipherward.errors import CipherwardError, FormatError, VerificationError
from cipherward.proto.v1.coordinator_pb2 import RelayMessage
from cipherward.proto.v1.round_pb2 import RelayItem

CHUNK_BYTES = 2**20
_TAG_BYTES = 16
_SEAL_LABEL = {
    RelayItem.KIND_SHARED_KEY: Label.SEAL_SHARED_KEY,
    RelayItem.KIND_MODEL: Label.SEAL_MODEL,
}


def _context(item: RelayItem) -> tuple[bytes, ...]:
    return (
        item.manifest_digest,
        item.sender.encode(),
        item.receiver.encode(),
        item.round.to_bytes(4, "big"),
        item.content_digest,
    )


def _nonce(index: int) -> bytes:
    return index.to_bytes(12, "big")


def seal_item(
    trust: StudyTrust,
    signing_key: SigningKey,
    signer: str,
    *,
    kind: RelayItem.Kind.ValueType,
    sender: str,
    receiver: str,
    round_number: int,
    content: bytes,
    content_digest: bytes,
    transcript: bytes = b"",
) -> Iterator[RelayMessage]:
    """The messages of one PutRelay: the signed item, then the body. ``content`` is not kept."""
    named = (sender.encode(), receiver.encode(), round_number.to_bytes(4, "big"), content_digest)
    body_key = hedged_key(Label.RELAY_KEY, content, trust.digest, *named)
    cipher = AESGCM(body_key)
    pieces = range(0, max(len(content), 1), CHUNK_BYTES)
    body = [
        cipher.encrypt(_nonce(index), content[start : start + CHUNK_BYTES], None)
        for index, start in enumerate(pieces)
    ]
    item = RelayItem(
        kind=kind,
        manifest_digest=trust.digest,
        sender=sender,
        receiver=receiver,
        round=round_number,
        content_digest=content_digest,
        content_length=len(content),
        body_root=merkle.root([merkle.leaf_hash(chunk) for chunk in body]),
        chunk_count=len(body),
        transcript=transcript,
    )
    item.sealed_key = seal(trust.site(receiver).sealing_key, body_key, _SEAL_LABEL[kind], *_context(item))
    study = trust.manifest.study
    yield RelayMessage(study=study, item=signing_key.sign(Label.RELAY, item, signer))
    for index, chunk in enumerate(body):
        yield RelayMessage(study=study, index=index, data=chunk)


def open_item(
    messages: Iterable[RelayMessage],
    trust: StudyTrust,
    sealing_key: SealingKey,
    *,
    receiver: str,
    kind: RelayItem.Kind.ValueType,
    max_bytes: int,
    accept: Callable[[RelayItem], None],
) -> tuple[RelayItem, bytes] | None:
    """Verify and decrypt what GetRelay streamed; None if it was nothing.

    ``accept`` sees the verified item before its body is fetched, and raises for one that is not wanted. The
    caller compares the content with ``content_digest``. Raises VerificationError or FormatError.
    """
    stream = iter(messages)
    first = next(stream, None)
    if first is None or not first.HasField("item"):
        return None
    item = verify_relay(first.item, trust, receiver)
    if item.kind != kind:
        raise VerificationError("a relayed item is of another kind than was asked for")
    expected = -(-item.content_length // CHUNK_BYTES) or 1
    if item.content_length > max_bytes or item.chunk_count != expected:
        raise FormatError("a relayed item has an impossible size")
    try:
        accept(item)
    except CipherwardError:
        # Read to the end all the same: the coordinator then knows that it was fetched, and lets another be
        # sent.
        for _ in stream:
            pass
        raise
    body = list(_body(stream, item))
    if not hmac.compare_digest(merkle.root([merkle.leaf_hash(chunk) for chunk in body]), item.body_root):
        raise VerificationError("a relayed item's body is not the one that its sender signed")
    key = sealing_key.open(item.sealed_key, _SEAL_LABEL[kind], *_context(item))
    try:
        cipher = AESGCM(key)
        content = b"".join(cipher.decrypt(_nonce(index), chunk, None) for index, chunk in enumerate(body))
    except (InvalidTag, ValueError) as error:
        raise VerificationError("a relayed item's body does not open") from error
    if len(content) != item.content_length:
        raise VerificationError("a relayed item has another length than its sender signed")
    return item, content


def _body(stream: Iterator[RelayMessage], item: RelayItem) -> Iterator[bytes]:
    for index in range(item.chunk_count):
        message = next(stream, None)
        if message is None or message.index != index or len(message.data) > CHUNK_BYTES + _TAG_BYTES:
            raise FormatError("a relayed item's body is cut short or out of order")
        yield message.data
    if next(stream, None) is not None:
        raise FormatError("a relayed item's body is longer than its sender signed")
