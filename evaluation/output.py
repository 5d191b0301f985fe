"""Where the evaluation prints."""

from __future__ import annotations

from rich.console import Console


def console() -> Console:
    """The terminal, or a log of 120 columns."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=120)
