"""The daemon's log: plain lines for people, JSON lines for machines. What goes in are names, rounds, counts
and digests; keys, updates, weights and patients' data are never passed to it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import TextIO

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

from cipherward.errors import printable
from cipherward.lines import lasting


def _plain(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    """``TIME LEVEL event key=value ...``, without colours: it goes to a journal or a terminal alike. Values may be
    what the coordinator or a peer wrote: they make no second line and act on no terminal."""
    time, level, text = event.pop("timestamp"), event.pop("level"), event.pop("event")
    rest = " ".join(f"{key}={printable(str(value))}" for key, value in event.items())
    return f"{time} {level:<7} {text}{'  ' + rest if rest else ''}"


def make_logger(
    *,
    json_lines: bool,
    stream: TextIO | None = None,
    observe: Callable[[EventDict], None] = lambda _event: None,
) -> FilteringBoundLogger:
    """A logger that writes to ``stream`` (by default standard output), from level INFO. ``observe`` sees each line
    before it is written."""

    def observed(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        observe(event)
        return event

    renderer = structlog.processors.JSONRenderer() if json_lines else _plain
    logger: FilteringBoundLogger = structlog.wrap_logger(
        structlog.WriteLogger(lasting(stream or sys.stdout)),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%Y-%m-%dT%H:%M:%SZ", utc=True),
            observed,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    ).bind()
    return logger
