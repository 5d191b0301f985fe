"""Names and ids, checked once at the edge. A value of these types is safe in paths, SQL, logs and URIs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

from cipherward.errors import FormatError

StudyId = NewType("StudyId", str)
SiteName = NewType("SiteName", str)
ConsortiumName = NewType("ConsortiumName", str)
Digest = NewType("Digest", bytes)
"""32 bytes of SHA-256."""

DIGEST_BYTES = 32
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")
_SPIFFE = re.compile(r"spiffe://([^/]+)/(site|coordinator|operator)/([^/]+)\Z")


class Role(StrEnum):
    """What a certificate's holder may be."""

    SITE = "site"
    COORDINATOR = "coordinator"
    OPERATOR = "operator"


def check_name(value: str, kind: str) -> str:
    """A DNS label: 1 to 63 of a-z, 0-9 and '-', not at the ends.

    Raises FormatError with a suggestion (``St. Mary's Köln`` -> ``st-mary-s-k-ln``).
    """
    if _NAME.match(value):
        return value
    suggestion = re.sub(r"[^a-z0-9]+", "-", value.lower()).strip("-")[:63].strip("-")
    hint = f"Use {suggestion!r} instead" if suggestion else "Choose another name"
    raise FormatError(
        f"{kind} name {value[:80]!r} is not usable",
        why="names are 1 to 63 of a-z, 0-9 and '-', and begin and end with a letter or digit",
        fix=hint,
    )


def check_digest(value: bytes, what: str) -> Digest:
    """32 bytes, or FormatError."""
    if len(value) != DIGEST_BYTES:
        raise FormatError(f"{what} has {len(value)} bytes", why=f"a digest has {DIGEST_BYTES}")
    return Digest(value)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a certificate or signature belongs to, written ``spiffe://CONSORTIUM/ROLE/NAME``."""

    consortium: ConsortiumName
    role: Role
    name: str

    def __str__(self) -> str:
        return f"spiffe://{self.consortium}/{self.role.value}/{self.name}"

    @classmethod
    def make(cls, consortium: str, role: Role, name: str) -> Identity:
        """From parts; raises FormatError for names that are not DNS labels."""
        check_name(consortium, "consortium")
        check_name(name, role.value)
        return cls(ConsortiumName(consortium), role, name)

    @classmethod
    def parse(cls, uri: str) -> Identity:
        """From its URI; raises FormatError."""
        match = _SPIFFE.match(uri)
        if match is None:
            raise FormatError(
                f"{uri[:120]!r} is not an identity", why="it must be spiffe://CONSORTIUM/ROLE/NAME"
            )
        return cls.make(match[1], Role(match[2]), match[3])
