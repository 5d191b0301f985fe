"""Mutation that knows what it mutates: a field of a record inside an envelope inside a message, and then signs the
record again half of the time, so that fuzzing gets behind the signature check."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import fuzz_wire as wire
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from cipherward.crypto.labels import Label, framed
from cipherward.crypto.signing import SigningKey
from cipherward.proto.v1 import round_pb2, study_pb2
from cipherward.proto.v1.common_pb2 import Signed

Mutate = Callable[[bytes, Random], bytes]
MOST_BYTES = 2**20
"""Of an input; what larger ones do is a matter of size limits, and targets of their own."""

NAMES = (
    *(
        "",
        "anna",
        "site-1",
        "root",
        "hub",
        "a" * 63,
        "a" * 64,
        "-a",
        "a-",
        "A",
        "a b",
        "a.b",
        "a/b",
        "..",
        ".",
    ),
    *("a\x00b", "a\nb", "\x1b[31mred", "\r\n", "\u202eanna", "\u200b", "ä", "\u0430nna", "\U0001f600", "%s"),
    *("{0}", "${HOME}", "'; drop table studies; --", "a" * 5000, "\ud7ff", "\ufeff", "\uffff", "CON", "nul"),
    *("spiffe://heart/site/site-1", "spiffe://heart/site/", "spiffe://heart/root/x", "spiffe:///site/a"),
    *(
        "spiffe://heart/site/site-1/",
        "spiffe://heart/coordinator/hub",
        "spiffe://h/site/a\n",
        "tenseal 0.3.16",
    ),
    *("quorum", "shared-key", "q32", "q16", "fedavg", "coordinator", "sites", "seal-4096-48"),
)
# The points of small order of Curve25519 and its twist, and non-canonical encodings of them (RFC 7748, section 6.1).
LOW_ORDER = tuple(
    bytes.fromhex(one)
    for one in (
        "00" * 32,
        "01" + "00" * 31,
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "ff" * 32,
    )
)
SIZES = (0, 1, 16, 31, 32, 33, 63, 64, 65, 96, 1184, 1215, 1216, 1217, 8192, 65536)

_INTEGER_TYPES = {
    FieldDescriptor.TYPE_UINT32,
    FieldDescriptor.TYPE_UINT64,
    FieldDescriptor.TYPE_INT64,
    FieldDescriptor.TYPE_INT32,
    FieldDescriptor.TYPE_BOOL,
    FieldDescriptor.TYPE_ENUM,
}


@dataclass(frozen=True)
class Envelope:
    """What a ``Signed`` holds where it stands."""

    label: Label
    kind: type[Message]


INSIDE: Mapping[tuple[str, str], Envelope] = {
    ("PlanRecord", "joins"): Envelope(Label.JOIN, round_pb2.Join),
    ("Contribution", "commit"): Envelope(Label.COMMIT, round_pb2.Commit),
    ("ShareMessage", "commit"): Envelope(Label.COMMIT, round_pb2.Commit),
    ("AnswerMessage", "record"): Envelope(Label.ANSWER, round_pb2.Answer),
    ("PostAnswerRequest", "record"): Envelope(Label.ANSWER, round_pb2.Answer),
    ("RelayMessage", "item"): Envelope(Label.RELAY, round_pb2.RelayItem),
    ("OperatorOrder", "command"): Envelope(Label.OPERATOR_COMMAND, study_pb2.OperatorCommand),
}
"""Where envelopes stand inside other messages; a target adds what is special to it."""


class Mutator:
    """Mutates messages. ``keys``: who can sign, by the name in ``Signed.signer``; ``inside``: see INSIDE."""

    def __init__(
        self,
        keys: Mapping[str, SigningKey],
        inside: Mapping[tuple[str, str], Envelope] | None = None,
        *,
        others: Sequence[bytes] = (),
    ) -> None:
        self._keys, self._inside, self._others = keys, {**INSIDE, **(inside or {})}, others

    def message(self, raw: bytes, kind: Descriptor, rng: Random, depth: int = 0) -> bytes:
        """A message of that type with something changed."""
        fields = None if depth > 8 or len(raw) > 2**18 else wire.parse(raw)
        if fields is None:
            return octets(raw, rng)
        if not fields or rng.random() < 0.3:
            return wire.encode(wire.rearranged(fields, rng))
        at = rng.randrange(len(fields))
        field = fields[at]
        known = kind.fields_by_number.get(field.number)
        if rng.random() < 0.1:  # of what is absent a field with its default, or a large one
            known = rng.choice(kind.fields) if kind.fields else None
            if known is not None:
                field = wire.Field(known.number, *_some(known, rng))
                fields.insert(at, field)
        fields[at] = self._value(field, kind, known, rng, depth)
        return wire.encode(fields)

    def _value(
        self, field: wire.Field, kind: Descriptor, known: FieldDescriptor | None, rng: Random, depth: int
    ) -> wire.Field:
        value = field.value
        if isinstance(value, int):
            return wire.Field(field.number, field.kind, integer(value, rng))
        if field.kind != wire.BYTES:
            if known is not None and known.type == FieldDescriptor.TYPE_DOUBLE and len(value) == 8:
                return wire.Field(field.number, field.kind, rng.choice(wire.FLOATS))
            return wire.Field(field.number, field.kind, _same_size(value, rng))
        if known is None:
            new = octets(value, rng)
        elif known.type == FieldDescriptor.TYPE_MESSAGE:
            inner = known.message_type
            if inner.full_name == Signed.DESCRIPTOR.full_name:
                new = self.signed(value, self._inside.get((kind.name, known.name)), rng, depth + 1)
            else:
                new = self.message(value, inner, rng, depth + 1)
        elif known.type == FieldDescriptor.TYPE_STRING:
            new = string(value, rng)
        elif known.type in _INTEGER_TYPES:  # packed
            new = _packed(value, rng)
        else:
            new = octets(value, rng) if rng.random() < 0.6 else sized(value, rng)
        return wire.Field(field.number, field.kind, new)

    def signed(self, raw: bytes, envelope: Envelope | None, rng: Random, depth: int = 0) -> bytes:
        """An envelope: mostly its payload changed, signed again half of the time."""
        try:
            signed = Signed.FromString(raw)
        except Exception:  # DecodeError; whatever it is, these bytes are no envelope
            return octets(raw, rng)
        if envelope is None or rng.random() < 0.15:
            return self.message(raw, Signed.DESCRIPTOR, rng, depth + 1)
        payload = signed.payload
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            payload = self.message(payload, envelope.kind.DESCRIPTOR, rng, depth + 1)
        signature = signed.signature
        if rng.random() < 0.5 and (key := self._keys.get(signed.signer)) is not None:
            signature = sign_bytes(key, envelope.label, payload)
        return Signed(payload=payload, signer=signed.signer, signature=signature).SerializeToString()

    def of(self, kind: type[Message] | Envelope) -> Mutate:
        """As a function of input and generator."""

        def mutate(data: bytes, rng: Random) -> bytes:
            if rng.random() < 0.03:
                return octets(data, rng)
            if isinstance(kind, Envelope):
                return self.signed(data, kind, rng)[:MOST_BYTES]
            return self.message(data, kind.DESCRIPTOR, rng)[:MOST_BYTES]

        return mutate


def sign_bytes(key: SigningKey, label: Label, payload: bytes) -> bytes:
    """A signature over bytes that need not be a message of ours."""
    return key._key.sign(framed(label, payload))


def _some(known: FieldDescriptor, rng: Random) -> tuple[int, int | bytes]:
    if known.type == FieldDescriptor.TYPE_DOUBLE:
        return wire.FIXED64, rng.choice(wire.FLOATS)
    if known.type in _INTEGER_TYPES and not known.is_repeated:
        return wire.VARINT, rng.choice(wire.INTEGERS)
    return wire.BYTES, rng.randbytes(rng.choice((0, 1, 32)))


def integer(value: int, rng: Random) -> int:
    """Another integer below 2**64."""
    how = rng.randrange(4)
    if how == 0:
        return rng.choice(wire.INTEGERS)
    if how == 1:
        return (value + rng.choice((-1, 1, 2, 256))) % 2**64
    if how == 2:
        return value ^ 1 << rng.randrange(64)
    return rng.randrange(8)


def _packed(value: bytes, rng: Random) -> bytes:
    how = rng.randrange(5)
    if how == 0:
        return value + wire.varint(rng.choice(wire.INTEGERS))
    if how == 1:
        return value * rng.choice((0, 2, 50))
    if how == 2:
        return b"".join(wire.varint(one) for one in range(rng.choice((3, 300, 20000))))
    return octets(value, rng)


def string(value: bytes, rng: Random) -> bytes:
    """Another text, sometimes not UTF-8."""
    how = rng.randrange(4)
    if how == 0:
        return rng.choice(NAMES).encode("utf-8", "surrogatepass")
    if how == 1:
        at = rng.randrange(len(value) + 1)
        return value[:at] + rng.choice(NAMES).encode("utf-8", "surrogatepass")[:40] + value[at:]
    if how == 2:
        return octets(value, rng)
    return value + bytes([rng.choice((0, 9, 10, 13, 27, 32, 46, 47, 92, 127, 128, 192, 237, 255))])


def sized(value: bytes, rng: Random) -> bytes:
    """Bytes of another size, or of the same with special content: keys, digests and signatures are such."""
    how = rng.randrange(4)
    if how == 0:
        return (value * (rng.choice(SIZES) // max(1, len(value)) + 1))[: rng.choice(SIZES)]
    if how == 1:
        return bytes([rng.choice((0, 255))]) * len(value)
    if how == 2 and len(value) >= 32:
        return value[:-32] + rng.choice(LOW_ORDER)
    return value[:-1] if value and rng.random() < 0.5 else value + b"\x00"


def _same_size(value: bytes, rng: Random) -> bytes:
    return octets(value, rng)[: len(value)].ljust(len(value), b"\x00")


def octets(value: bytes, rng: Random) -> bytes:
    """Bytes with a flip, cut, insertion, repetition or something else altogether."""
    if not value:
        return rng.randbytes(rng.choice((0, 1, 4, 40)))
    at, how = rng.randrange(len(value)), rng.randrange(8)
    if how <= 1:
        return value[:at] + bytes([value[at] ^ 1 << rng.randrange(8)]) + value[at + 1 :]
    if how == 2:
        return value[:at]
    if how == 3:
        return value[:at] + rng.randbytes(rng.randrange(1, 16)) + value[at:]
    if how == 4:
        end = min(len(value), at + rng.randrange(1, 64))
        return value[:at] + value[end:]
    if how == 5:
        return value[:at] + rng.choice((b"\xff", b"\x00", b"\x80", b"\x7f")) + value[at + 1 :]
    if how == 6:
        size = rng.choice((1, 2, 4, 8))
        word = struct.pack("<Q", rng.choice(wire.INTEGERS))[:size]
        return (value[:at] + (word if rng.random() < 0.5 else word[::-1]) + value[at + size :])[: len(value)]
    return value[at:] + value[:at]


# Streams of several messages in one input


def frames(messages: Sequence[bytes]) -> bytes:
    """Each behind its length, 4 bytes, big-endian."""
    return b"".join(len(one).to_bytes(4, "big") + one for one in messages)


def unframed(data: bytes) -> list[bytes]:
    """What ``frames`` framed; a length that is too large ends it with what there is."""
    found = []
    while len(data) >= 4 and len(found) < 64:
        size = int.from_bytes(data[:4], "big")
        found.append(data[4 : 4 + size])
        data = data[4 + size :]
    return found


def in_frames(mutate: Mutate) -> Mutate:
    """Mutates one message of a stream, or leaves one out, repeats or swaps them."""

    def mutated(data: bytes, rng: Random) -> bytes:
        messages = unframed(data)
        if not messages:
            return frames([mutate(b"", rng)])
        at, how = rng.randrange(len(messages)), rng.randrange(8)
        if how == 0:
            del messages[at]
        elif how == 1:
            messages.insert(at, messages[rng.randrange(len(messages))])
        elif how == 2:
            rng.shuffle(messages)
        else:
            messages[at] = mutate(messages[at], rng)
        return frames(messages)[:MOST_BYTES]

    return mutated


def several(*ways: Mutate) -> Mutate:
    """One of the ways each time."""

    def mutate(data: bytes, rng: Random) -> bytes:
        return rng.choice(ways)(data, rng)

    return mutate


def one_of(values: Sequence[Any]) -> Mutate:
    """Something from a list, whatever the input was."""
    return lambda _, rng: bytes(rng.choice(values))
