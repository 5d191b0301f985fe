"""Digests as people compare them over the phone: 64 hex digits in groups of four."""

from __future__ import annotations

import hmac
import re

from cipherward.errors import FormatError, IdentityError
from cipherward.ids import DIGEST_BYTES, Digest

_SEPARATORS = re.compile(r"[\s:-]+")


def show(digest: bytes) -> str:
    """``1f2e 3d4c ...``: sixteen groups of four."""
    text = digest.hex()
    return " ".join(text[start : start + 4] for start in range(0, len(text), 4))


def read(text: str) -> Digest:
    """What a person typed or pasted, in any case and grouping; raises FormatError."""
    compact = _SEPARATORS.sub("", text).lower()
    if re.fullmatch(r"[0-9a-f]{64}", compact) is None:
        raise FormatError(
            "the fingerprint is not complete",
            why=f"a fingerprint has {2 * DIGEST_BYTES} hexadecimal digits",
            fix="Copy all sixteen groups of four",
        )
    return Digest(bytes.fromhex(compact))


def check(actual: bytes, text: str, what: str) -> None:
    """Raises IdentityError unless ``text`` is the fingerprint ``actual``."""
    if not hmac.compare_digest(actual, read(text)):
        raise IdentityError(
            f"the fingerprint does not belong to this {what}",
            why=f"the file's fingerprint is {show(actual)}",
            fix="Ask for the fingerprint again by telephone; if it still differs, the file is not genuine",
        )
