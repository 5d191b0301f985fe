"""``cipherward site``: one hospital's agent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cipherward.cli import membership, site_service
from cipherward.ids import Role

app = typer.Typer(name="site", help="Set up and run one hospital's agent.", no_args_is_help=True)


@app.command(
    epilog="Example: cipherward site init --dir site --consortium heart --name st-mary --anchor anchor.pem "
    "--fingerprint '1f2e ...'"
)
def init(
    folder: Annotated[Path, typer.Option("--dir", help="The site's folder.")] = Path("site"),
    consortium: membership.Consortium = "",
    name: membership.Name = "",
    anchor: membership.Anchor = None,
    fingerprint: membership.Fingerprint = "",
    credential: membership.Credential = None,
    json: membership.Json = False,
) -> None:
    """Make the site's keys, a request for the admin and a cautious policy.toml; then install what the admin
    approved. A second run keeps keys and policy."""
    from cipherward.crypto.pki.site_keys import ensure_sealing_key
    from cipherward.site_agent.policy.template import write_default

    membership.init(
        Role.SITE,
        folder,
        consortium=consortium,
        name=name,
        anchor=anchor,
        fingerprint=fingerprint,
        credential=credential,
        json=json,
        sealing_key=lambda: ensure_sealing_key(folder),
    )
    policy = folder / "policy.toml"
    if not policy.exists():
        write_default(policy)
        if not json:
            typer.echo(f"Read and complete {policy}: it says what this hospital allows.")


site_service.add_to(app)
