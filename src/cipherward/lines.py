"""Where a daemon's log goes: a stream that may break without breaking the daemon."""

from __future__ import annotations

import io
from contextlib import suppress
from typing import TextIO, cast


class _Lines(io.TextIOBase):
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):  # ValueError: closed
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


def lasting(stream: TextIO) -> TextIO:
    """Writes to ``stream`` what it can. A full disk under the log, or a reader that is gone, loses lines; an error
    in their place would end whatever was about to say something, in the middle of its work. Letters that its encoding
    does not have come as escapes."""
    if isinstance(stream, io.TextIOWrapper):
        with suppress(OSError, ValueError):
            stream.reconfigure(errors="backslashreplace")
    return cast(TextIO, _Lines(stream))
