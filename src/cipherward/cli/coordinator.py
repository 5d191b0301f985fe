"""``cipherward coordinator``: the service between the sites."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cipherward.cli import coordinator_service, membership
from cipherward.ids import Role

app = typer.Typer(
    name="coordinator", help="Set up and run the service between the sites.", no_args_is_help=True
)


@app.command(
    epilog="Example: cipherward coordinator init --dir hub --consortium heart --name hub --anchor anchor.pem "
    "--fingerprint '1f2e ...' --host hub.example.org"
)
def init(
    folder: Annotated[Path, typer.Option("--dir", help="The coordinator's folder.")] = Path("coordinator"),
    consortium: membership.Consortium = "",
    name: membership.Name = "",
    anchor: membership.Anchor = None,
    fingerprint: membership.Fingerprint = "",
    host: Annotated[
        list[str] | None,
        typer.Option(help="Host name or address that sites dial; repeat for several.", show_default=False),
    ] = None,
    credential: membership.Credential = None,
    json: membership.Json = False,
) -> None:
    """Make the coordinator's keys and a request for the admin; then install what the admin approved."""
    membership.init(
        Role.COORDINATOR,
        folder,
        consortium=consortium,
        name=name,
        anchor=anchor,
        fingerprint=fingerprint,
        credential=credential,
        json=json,
        hosts=host or (),
    )


coordinator_service.add_to(app)
