"""Where the command line prints for people. Parts of a text come from others: the coordinator's reasons, peers' names,
an operator's words. ``errors.printable`` makes those harmless."""

from __future__ import annotations

from rich.console import Console


def console() -> Console:
    """The terminal, or 120 columns where there is none. ``[...]`` in a text is text, and no style."""
    found = Console(highlight=False, markup=False, emoji=False)
    if found.is_terminal:
        return found
    return Console(highlight=False, markup=False, emoji=False, width=120)
