"""Protobuf's wire format taken apart and put together again, also in ways that no encoder would: fields twice,
unknown, of the wrong type, with integers longer than they need be, nested without end."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

VARINT, FIXED64, BYTES, GROUP, END, FIXED32 = 0, 1, 2, 3, 4, 5
_FIXED = {FIXED64: 8, FIXED32: 4}

INTEGERS = (
    *(0, 1, 2, 3, 16, 127, 128, 255, 1000, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63),
    2**64 - 1,  # -1 as protobuf writes it
)
FLOATS = tuple(
    bytes.fromhex(one)
    for one in (
        "0000000000000000",
        "0000000000000080",  # -0.0
        "000000000000f03f",  # 1.0
        "000000000000f0bf",
        "000000000000f07f",  # inf
        "000000000000f0ff",
        "000000000000f87f",  # NaN
        "010000000000f07f",  # signalling NaN
        "0100000000000000",  # the smallest there is
        "ffffffffffffef7f",  # the largest
    )
)


@dataclass(frozen=True, slots=True)
class Field:
    """One field. ``value``: an integer for VARINT, bytes for everything else (a group's are its content)."""

    number: int
    kind: int
    value: int | bytes
    padding: int = 0
    """Bytes more than its integers need: every varint has many encodings."""


def varint(value: int, padding: int = 0) -> bytes:
    """The integer, 7 bits a byte, in ``padding`` bytes more than necessary."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    if padding:
        out[-1] |= 128
        out += b"\x80" * (padding - 1) + b"\x00"
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value & (2**64 - 1), at
    raise ValueError


def parse(data: bytes) -> list[Field] | None:
    """The fields of a message in order, or None if it is none. Groups are not looked for."""
    fields, at = [], 0
    try:
        while at < len(data):
            tag, at = _read_varint(data, at)
            number, kind = tag >> 3, tag & 7
            value: int | bytes
            if kind == VARINT:
                value, at = _read_varint(data, at)
            elif kind in (BYTES, FIXED32, FIXED64):
                size = _FIXED.get(kind)
                if size is None:
                    size, at = _read_varint(data, at)
                value, at = data[at : at + size], at + size
                if at > len(data):
                    return None
            else:
                return None
            fields.append(Field(number, kind, value))
    except (IndexError, ValueError):
        return None
    return fields


def encode(fields: list[Field]) -> bytes:
    """The bytes of these fields."""
    out = bytearray()
    for field in fields:
        out += varint(field.number << 3 | field.kind, field.padding)
        if isinstance(field.value, int):
            out += varint(field.value, field.padding)
        elif field.kind == BYTES:
            out += varint(len(field.value), field.padding) + field.value
        elif field.kind == GROUP:
            out += field.value + varint(field.number << 3 | END)
        else:
            out += field.value
    return bytes(out)


def nested(number: int, depth: int, kind: int = BYTES) -> Field:
    """A field in a field in a field."""
    inner = b""
    for _ in range(depth):
        inner = encode([Field(number, kind, inner)])
    return Field(number, kind, inner)


def rearranged(fields: list[Field], rng: Random) -> list[Field]:
    """The same message with something about its structure that no encoder writes."""
    out = list(fields)
    at = rng.randrange(len(out)) if out else 0
    how = rng.randrange(11)
    if not out or how == 0:
        value: int | bytes = rng.choice(INTEGERS) if rng.random() < 0.5 else rng.randbytes(rng.randrange(20))
        number = rng.choice((1, 2, 15, 16, 99, 2047, 2**29 - 1, 0))
        out.insert(at, Field(number, VARINT if isinstance(value, int) else BYTES, value))
    elif how == 1:
        out.insert(at, out[at])
    elif how == 2:
        del out[at]
    elif how == 3:
        out.insert(rng.randrange(len(out) + 1), out.pop(at))
    elif how == 4:
        out[at] = replace(out[at], padding=rng.randrange(1, 12))
    elif how == 5:
        out[at] = replace(out[at], number=rng.randrange(0, 24))
    elif how == 6:  # huge repeated fields, seldom of 64 KiB: those take long to take apart
        size, most = max(2, len(encode([out[at]]))), 65536 if rng.random() < 0.05 else 1024
        out[at:at] = [out[at]] * rng.randrange(1, max(2, most // size))
    elif how == 7:
        out[at] = nested(out[at].number, rng.choice((3, 50, 99, 101, 200)), rng.choice((BYTES, GROUP)))
    elif how == 8:
        kind = rng.choice((VARINT, FIXED32, FIXED64, BYTES))
        filler = {VARINT: rng.choice(INTEGERS), BYTES: rng.randbytes(rng.randrange(40))}
        out[at] = Field(out[at].number, kind, filler.get(kind, rng.randbytes(_FIXED.get(kind, 0))))
    elif how == 9:
        rng.shuffle(out)
    else:
        out += out
    return out
