"""Mutation of what is not protobuf: armoured files, TOML, and the DER of certificates, which is signed again too."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable, Sequence
from random import Random

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from fuzz_mutate import NAMES, Mutate, octets

from cipherward.crypto.pki.armour import Kind, armour, blocks
from cipherward.errors import FormatError

# Armour


def in_blocks(mutate: Callable[[Kind, bytes, Random], bytes]) -> Mutate:
    """Mutates the content of one block and armours it again; sometimes the text."""

    def mutated(text: bytes, rng: Random) -> bytes:
        found = []
        with contextlib.suppress(FormatError):
            found = blocks(text)
        if not found or rng.random() < 0.15:
            return _text(text, rng)
        at = rng.randrange(len(found))
        kind, content = found[at]
        found[at] = (kind, mutate(kind, content, rng))
        how = rng.randrange(20)
        if how == 0:
            found.append(found[at])
        elif how == 1:
            del found[at]
        elif how == 2:
            rng.shuffle(found)
        elif how == 3:
            found[at] = (rng.choice(list(Kind)), found[at][1])
        return b"".join(armour(one, content) for one, content in found)

    return mutated


def _text(text: bytes, rng: Random) -> bytes:
    lines = text.splitlines(keepends=True) or [b""]
    at, how = rng.randrange(len(lines)), rng.randrange(9)
    if how == 0:
        lines.insert(at, rng.choice(lines))
    elif how == 1:
        del lines[at]
    elif how == 2:
        lines[at] = lines[at].rstrip() + rng.choice(
            (b"\r\n", b" \n", b"\t\n", b"\r", b"=\n", b"====\n", b"\n\n")
        )
    elif how == 3:
        lines[at] = rng.choice(NAMES).encode("utf-8", "surrogatepass") + b"\n"
    elif how == 4:
        lines[at] = base64.b64encode(rng.randbytes(rng.randrange(48))) + b"\n"
    elif how == 5:
        lines[at] = b"-----BEGIN CIPHERWARD " + rng.choice((b"MANIFEST", b"X", b"A" * 33, b"")) + b"-----\n"
    elif how == 6:
        lines *= 2
    elif how == 7:
        lines.insert(at, b"Proc-Type: 4,ENCRYPTED\n")
    else:
        return octets(text, rng)
    return b"".join(lines)


# TOML

VALUES = (
    *(
        "0",
        "1",
        "-1",
        "2147483648",
        "18446744073709551616",
        "-9223372036854775809",
        "9" * 4301,
        "0x" + "f" * 4000,
    ),
    *("0b" + "1" * 9000, "1_0", "1__0", "0o8", "1e400", "-1e400", "1e-400", "1." + "0" * 5000, "inf", "-inf"),
    *(
        "nan",
        "+nan",
        "true",
        "false",
        "''",
        '""',
        '"\\u0000"',
        '"\\ud800"',
        '"\\U00110000"',
        '"""\n\n"""',
        "'''",
    ),
    *("[]", "[[]]", "[1, 'a', {}]", "{}", "{a = {a = {a = 1}}}", "[" * 200 + "]" * 200, "[" * 2000),
    *("{a=" * 200 + "1" + "}" * 200, "{a=" * 1500, "1979-05-27T07:32:00Z", "9999-99-99", "0000-01-01"),
    *(
        "24:61:00",
        "1979-05-27T07:32:00.999999999999+99:99",
        '"' + "a" * 70_000 + '"',
        "'quorum'",
        "'shared-key'",
    ),
    *('"' + name.replace("\\", "").replace('"', "") + '"' for name in NAMES[:24] if "\n" not in name),
)
KEYS = (
    "a",
    "''",
    '""',
    '"a.b"',
    "a.b.c",
    "a." * 300 + "b",
    "__proto__",
    "__class__",
    "model_config",
    "ä",
    "[x]",
)


def toml(text: bytes, rng: Random) -> bytes:
    """A file of settings with another value, key, line or table."""
    lines = text.split(b"\n")
    at, how = rng.randrange(len(lines)), rng.randrange(10)
    settings = [index for index, line in enumerate(lines) if b"=" in line and not line.startswith(b"#")]
    if settings and how <= 4:
        at = rng.choice(settings)
        key, _, _ = lines[at].partition(b"=")
        value = rng.choice(VALUES).encode("utf-8", "surrogatepass")
        lines[at] = key + b"= " + value
        if how == 4:
            lines[at] = rng.choice(KEYS).encode() + b" = " + value
    elif how == 5:
        lines.insert(at, rng.choice(lines))
    elif how == 6:
        del lines[at]
    elif how == 7:
        key = rng.choice(KEYS)
        lines.insert(at, rng.choice((f"[{key}]", f"[[{key}]]", f"[{key}", "[a]\n[a]", "[[a]]\n[a]")).encode())
    elif how == 8:
        key = rng.choice(KEYS).encode()
        lines.insert(at, key + b" = " + rng.choice(VALUES).encode("utf-8", "surrogatepass"))
    else:
        return octets(text, rng)
    return b"\n".join(lines)


# DER

TAGS = (
    0x01,
    0x02,
    0x03,
    0x04,
    0x05,
    0x06,
    0x0C,
    0x13,
    0x16,
    0x17,
    0x18,
    0x1E,
    0x30,
    0x31,
    0x80,
    0x86,
    0xA0,
    0xA3,
)
CONTENTS = (
    *(
        b"",
        b"\x00",
        b"\x01",
        b"\xff",
        b"\x00" * 8,
        b"\x80" + bytes(20),
        b"\x7f" * 20,
        b"\x2a\x86\x48",
        b"\x80\x80",
    ),
    *(
        b"991231235959Z",
        b"00000101000000Z",
        b"99991231235959Z",
        b"20260230000000Z",
        b"260101000000",
        b"\xc3\x28",
    ),
    *(b"spiffe://heart/site/\xff", b"spiffe://heart/site/anna", b"\x7f\x00\x00\x01", b"\x00" * 5, b"a" * 300),
    *(b"\x06\x03\x55\x1d\x11", b"\x55\x1d\x11", b"\x55\x1d\x13", b"\x30\x80", b"\x05\x00"),
)


def tlv(tag: int, content: bytes) -> bytes:
    """One element."""
    size = len(content)
    if size < 128:
        return bytes([tag, size]) + content
    width = (size.bit_length() + 7) // 8
    return bytes([tag, 128 | width]) + size.to_bytes(width, "big") + content


def elements(data: bytes) -> list[tuple[int, bytes]] | None:
    """The elements that these bytes are a row of, or None."""
    found, at = [], 0
    while at < len(data):
        if at + 2 > len(data):
            return None
        tag, size, at = data[at], data[at + 1], at + 2
        if size >= 128:
            width = size & 127
            if not 1 <= width <= 4:
                return None
            size, at = int.from_bytes(data[at : at + width], "big"), at + width
        if at + size > len(data):
            return None
        found.append((tag, data[at : at + size]))
        at += size
    return found


def der(data: bytes, rng: Random, depth: int = 0) -> bytes:
    """A row of elements of which one, somewhere inside, is another."""
    row = elements(data)
    if not row or depth > 12 or rng.random() < 0.03:
        return octets(data, rng)
    at, how = rng.randrange(len(row)), rng.randrange(24)
    tag, content = row[at]
    if how == 0:
        del row[at]
    elif how == 1:
        row.insert(at, row[at])
    elif how == 2:
        rng.shuffle(row)
    elif how == 3:
        row[at] = (rng.choice(TAGS), content)
    elif how == 4:
        row[at] = (tag, rng.choice(CONTENTS))
    elif how == 5:
        row.insert(at, (rng.choice(TAGS), rng.choice(CONTENTS)))
    else:
        inside = tag & 0x20 or (tag == 4 and elements(content))
        row[at] = (tag, der(content, rng, depth + 1) if inside else octets(content, rng))
    return b"".join(tlv(*one) for one in row)


def signed_der(keys: Sequence[ec.EllipticCurvePrivateKey]) -> Mutate:
    """Certificates and requests: what is signed is mutated, and signed again half of the time."""

    def mutated(data: bytes, rng: Random) -> bytes:
        outer = elements(data)
        parts = elements(outer[0][1]) if outer else None
        if parts is None or len(parts) != 3 or rng.random() < 0.1:
            return der(data, rng)
        body = der(tlv(*parts[0]), rng)
        for _ in range(rng.choice((0, 0, 1))):
            body = der(body, rng)
        signature = tlv(*parts[2])
        if rng.random() < 0.5:
            made = rng.choice(keys).sign(body, ec.ECDSA(hashes.SHA256()))
            signature = tlv(3, b"\x00" + made)
        return tlv(0x30, body + tlv(*parts[1]) + signature)

    return mutated
