"""Names of enumerations' values in messages. A peer may send any number: protobuf keeps it, and has no name for it."""

from __future__ import annotations

from typing import Any


def wire_name(kind: Any, number: int, prefix: str) -> str:
    """Of protobuf's wrapper of an enumeration, e.g. ``open`` for PHASE_OPEN; ``unknown`` if it has no such number."""
    if number not in kind.values():
        return "unknown"
    name: str = kind.Name(number)
    return name.removeprefix(prefix).lower()
