"""TOML that somebody wrote, mailed or generated: read in bounded time and memory, or refused.

``tomllib`` takes time and memory that grow with the square of a dotted key (64 KiB of ``a.a.a...`` take 25 s,
256 KiB more than 20 GB), recurses once a bracket, and passes on what ``int`` says about thousands of digits.
"""

from __future__ import annotations

import tomllib
from typing import Any

from cipherward.errors import UsageError

MAX_BYTES = 2**18
"""A study of 1,000 sites with a section for each has less."""
_MOST_DOTS = 32
"""Of a line that is not a comment."""


def parse_toml(content: bytes, where: str) -> dict[str, Any]:
    """The tables of ``content``; ``where`` names the file to people. Raises UsageError."""
    if len(content) > MAX_BYTES:
        raise UsageError(f"{where} has {len(content)} bytes", why=f"the limit is {MAX_BYTES}")
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.count(b".") > _MOST_DOTS and not line.lstrip().startswith(b"#"):
            raise UsageError(
                f"line {number} of {where} has more than {_MOST_DOTS} dots",
                why="no setting's name or value needs so many",
                fix="Put the values of a list on lines of their own",
            )
    try:
        return tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        raise UsageError(f"{where} is not valid TOML", why="it is not UTF-8") from error
    except ValueError as error:
        raise UsageError(f"{where} is not valid TOML", why=str(error)) from error
    except RecursionError as error:
        raise UsageError(f"{where} is not valid TOML", why="its brackets are nested too deep") from error
