"""``cipherward operator``: a person who starts and aborts studies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cipherward.cli import membership
from cipherward.ids import Role

app = typer.Typer(
    name="operator", help="Set up a person who starts and aborts studies.", no_args_is_help=True
)


@app.callback()
def group() -> None:
    """Set up a person who starts and aborts studies."""


@app.command(
    epilog="Example: cipherward operator init --dir olga --consortium heart --name olga --anchor anchor.pem "
    "--fingerprint '1f2e ...'"
)
def init(
    folder: Annotated[Path, typer.Option("--dir", help="The operator's folder.")] = Path("operator"),
    consortium: membership.Consortium = "",
    name: membership.Name = "",
    anchor: membership.Anchor = None,
    fingerprint: membership.Fingerprint = "",
    credential: membership.Credential = None,
    json: membership.Json = False,
) -> None:
    """Make the operator's keys and a request for the admin; then install what the admin approved."""
    membership.init(
        Role.OPERATOR,
        folder,
        consortium=consortium,
        name=name,
        anchor=anchor,
        fingerprint=fingerprint,
        credential=credential,
        json=json,
    )
