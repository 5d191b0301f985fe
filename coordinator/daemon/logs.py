"""Structured logs on stderr, one JSON object a line: names, numbers and reasons, never content."""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.tracebacks import ExceptionDictTransformer

from cipherward.lines import lasting

# Where in the code, never with the values there: those may be a record's bytes or a key.
TRACEBACKS = structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False))


def configure_logs() -> None:
    """JSON lines with time and level."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            TRACEBACKS,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=lasting(sys.stderr)),
        cache_logger_on_first_use=True,
    )
