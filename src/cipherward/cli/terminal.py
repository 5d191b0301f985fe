"""Text for people. Parts of it come from others: the coordinator's reasons, peers' names, an operator's words."""

from __future__ import annotations

from rich.console import Console


def console() -> Console:
    """The terminal, or 120 columns where there is none. ``[...]`` in a text is text, and no style."""
    found = Console(highlight=False, markup=False, emoji=False)
    if found.is_terminal:
        return found
    return Console(highlight=False, markup=False, emoji=False, width=120)


def printable(text: str) -> str:
    """Without line breaks, terminal sequences and reversed text."""
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)
