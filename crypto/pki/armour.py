"""Files that people mail to each other: one signed record as text, like PEM.

The first line names the kind, the body is base64 in lines of 64. There are no header lines, since nothing
would sign them. One content has one text: whatever differs from it in more than line ends is refused.
"""

from __future__ import annotations

import base64
import binascii
import re
from enum import StrEnum

from google.protobuf.message import DecodeError

from cipherward.crypto.signing import MAX_RECORD_BYTES, SIGNATURE_BYTES
from cipherward.errors import FormatError
from cipherward.ids import Identity
from cipherward.proto.v1.common_pb2 import Signed

ROOT_SIGNER = "root"
"""``Signed.signer`` of what the consortium's root signs."""

MAX_BLOCKS = 4
"""Most blocks of a file: a credential file has three."""

_LINE = 64
_BEGIN = re.compile(rb"-----BEGIN CIPHERWARD ([A-Z ]{1,32})-----\n")


class Kind(StrEnum):
    """What an armoured block holds; the name stands in its first and last line."""

    ANCHOR = "ANCHOR"
    REQUEST = "REQUEST"
    CREDENTIAL = "CREDENTIAL"
    STATUS_LIST = "STATUS LIST"
    MANIFEST = "MANIFEST"
    ROOT_KEY = "ROOT KEY"
    INCLUSION_PROOF = "INCLUSION PROOF"


_LIMITS = {
    Kind.ANCHOR: 16 * 2**10,
    Kind.REQUEST: 64 * 2**10,
    Kind.CREDENTIAL: 64 * 2**10,
    Kind.ROOT_KEY: 16 * 2**10,
    Kind.STATUS_LIST: MAX_RECORD_BYTES + 2**10,
    Kind.MANIFEST: MAX_RECORD_BYTES + 2**10,
    Kind.INCLUSION_PROOF: 4 * MAX_RECORD_BYTES,
}
"""Largest content of a block, in bytes."""


def armour(kind: Kind, content: bytes) -> bytes:
    """The block, as ASCII text with a final newline."""
    body = base64.b64encode(content)
    lines = [body[start : start + _LINE] for start in range(0, len(body), _LINE)]
    begin, end = (f"-----{edge} CIPHERWARD {kind.value}-----".encode() for edge in ("BEGIN", "END"))
    return b"\n".join([begin, *lines, end, b""])


def blocks(text: bytes) -> list[tuple[Kind, bytes]]:
    """All blocks of a file, in order: (kind, content). Raises FormatError on anything else in it."""
    rest = text.replace(b"\r\n", b"\n").strip(b" \t\n") + b"\n"
    found: list[tuple[Kind, bytes]] = []
    while rest := rest.lstrip(b"\n"):
        if len(found) == MAX_BLOCKS:
            raise FormatError("a file holds too many armoured blocks", why=f"the limit is {MAX_BLOCKS}")
        kind, content, rest = _first_block(rest)
        found.append((kind, content))
    return found


def _first_block(text: bytes) -> tuple[Kind, bytes, bytes]:
    begin = _BEGIN.match(text)
    if begin is None:
        raise FormatError(
            "a file is not an armoured Cipherward file",
            why="it does not begin with -----BEGIN CIPHERWARD",
            fix="Check that the whole file was copied, without a mail program's additions",
        )
    name = begin[1].decode()
    if name not in set(Kind):
        raise FormatError(
            f"a file holds a {name!r}, which this version does not know", fix="Update Cipherward"
        )
    kind = Kind(name)
    end = f"-----END CIPHERWARD {name}-----\n".encode()
    body, found, rest = text[begin.end() :].partition(end)
    if not found:
        raise FormatError(
            f"the {name.lower()} is cut short", why="its END line is missing", fix="Copy the whole file again"
        )
    if len(body) > _LIMITS[kind] // 3 * 4 * 66 // 64 + 2 * _LINE:
        raise FormatError(f"the {name.lower()} is too large", why=f"the limit is {_LIMITS[kind]} bytes")
    try:
        content = base64.b64decode(body.replace(b"\n", b""), validate=True)
    except (binascii.Error, ValueError) as error:
        raise FormatError(f"the {name.lower()} is damaged", why="its body is not base64") from error
    if armour(kind, content) != begin[0] + body + end:
        raise FormatError(f"the {name.lower()} is damaged", why="its lines are not as they were written")
    return kind, content, rest


def unarmour(kind: Kind, text: bytes) -> bytes:
    """The content of a file with exactly one block of that kind; raises FormatError."""
    found = blocks(text)
    kinds = [held.value.lower() for held, _ in found]
    if [held for held, _ in found] != [kind]:
        raise FormatError(
            f"a file is no {kind.value.lower()}",
            why=f"it holds {' and '.join(kinds) or 'nothing'}",
            fix="Check that it is the right file",
        )
    return found[0][1]


def armour_signed(kind: Kind, signed: Signed) -> bytes:
    """A signed record as text."""
    return armour(kind, signed.SerializeToString(deterministic=True))


def unarmour_signed(kind: Kind, text: bytes) -> Signed:
    """The one signed record of that kind in a file. Its signature is not checked here. Raises FormatError."""
    return parse_signed(kind, unarmour(kind, text))


def parse_signed(kind: Kind, content: bytes) -> Signed:
    """Decode the envelope in a block: canonical protobuf, a whole signature, a signer of bounded length."""
    what = kind.value.lower()
    signed = Signed()
    try:
        signed.ParseFromString(content)
    except (DecodeError, ValueError) as error:
        raise FormatError(f"the {what} cannot be read", why="it is not a signed record") from error
    # From the three known fields alone: an unknown one would survive a mere reserialisation.
    known = Signed(payload=signed.payload, signer=signed.signer, signature=signed.signature)
    if known.SerializeToString(deterministic=True) != content:
        raise FormatError(f"the {what} is damaged", why="its encoding is not the canonical one")
    if len(signed.signature) != SIGNATURE_BYTES or not signed.payload:
        raise FormatError(f"the {what} is damaged", why="its signature or payload is missing")
    if signed.signer != ROOT_SIGNER:
        Identity.parse(signed.signer)
    return signed
