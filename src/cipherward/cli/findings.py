"""How both ``fsck`` commands show what they found."""

from __future__ import annotations

import json as json_module

import typer

from cipherward.checking import Findings
from cipherward.errors import printable


def show(found: Findings, *, json: bool) -> None:
    """Print the findings; ends the command with status 1 if there are problems. Notes are none."""
    if json:
        typer.echo(json_module.dumps({"problems": found.problems, "notes": found.notes}, indent=1))
    else:
        for line in found.problems:
            typer.echo(printable(line))
        for line in found.notes:
            typer.echo(f"note: {printable(line)}")
        if not found.problems:
            typer.echo("no problems found")
    if found.problems:
        raise typer.Exit(1)
