"""``cipherward coordinator run``, ``status`` and ``fsck``."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from cipherward.errors import printable

Folder = Annotated[
    Path, typer.Option("--dir", help="The coordinator's folder, as `coordinator init` made it.")
]


def run(
    folder: Folder,
    listen: Annotated[
        str, typer.Option(help="HOST:PORT to listen on; port 0 takes any free one.")
    ] = "0.0.0.0:7443",
    json: Annotated[bool, typer.Option("--json", help='Print {"listening": "HOST:PORT"}.')] = False,
    metrics_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Serve /metrics, /healthz and /readyz on 127.0.0.1 there."),
    ] = None,
    database: Annotated[str, typer.Option(help="SQLAlchemy URL.  [default: coordinator.db in DIR]")] = "",
    blobs: Annotated[str, typer.Option(help="fsspec URL.  [default: blobs in DIR]")] = "",
    keep_rounds: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Ended rounds whose encrypted updates are kept for `audit verify`.  "
            "[default: 10 in the quorum suite, 1 in the shared-key suite]",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Serve sites and operators until SIGTERM or SIGINT. The log goes to standard error, one JSON object a line."""
    from cipherward.coordinator.daemon.logs import configure_logs
    from cipherward.coordinator.daemon.service import Settings, check_listen
    from cipherward.coordinator.daemon.service import run as serve

    def ready(address: str) -> None:
        typer.echo(json_module.dumps({"listening": address}) if json else f"listening on {address}")

    check_listen(listen)
    configure_logs()
    serve(Settings(folder, listen, metrics_port, database, blobs, keep_rounds), ready)


def status(
    folder: Folder,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    database: Annotated[str, typer.Option(help="SQLAlchemy URL.  [default: coordinator.db in DIR]")] = "",
) -> None:
    """What the coordinator's store says of its studies. Works whether or not the service runs."""
    from cipherward.coordinator.daemon.inspect import read_address, read_studies

    address, studies = read_address(folder), read_studies(folder, database)
    if json:
        shown = [
            {
                "study": study.name,
                "state": study.state.life.value,
                "round": study.state.round,
                "phase": study.state.phase.value,
                "manifest_versions": study.versions,
                "reason": study.state.reason,
                "closed_rounds": [one.round for one in study.history if one.contributors],
                "aborted_rounds": [one.round for one in study.history if one.aborted],
            }
            for study in studies
        ]
        typer.echo(json_module.dumps({"listening": address, "studies": shown}))
        return
    typer.echo(f"listening on {address}" if address else "not running")
    for study in studies:
        state = study.state
        closed = sum(bool(one.contributors) for one in study.history)
        aborted = sum(one.aborted for one in study.history)
        reason = f", {state.reason}" if state.reason else ""
        line = (
            f"{study.name}: {state.life.value}, round {state.round} ({state.phase.value}), "
            f"{closed} closed, {aborted} aborted{reason}"
        )
        typer.echo(printable(line))
    if not studies:
        typer.echo("no studies")


def fsck(
    folder: Folder,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    database: Annotated[str, typer.Option(help="SQLAlchemy URL.  [default: coordinator.db in DIR]")] = "",
    blobs: Annotated[str, typer.Option(help="fsspec URL.  [default: blobs in DIR]")] = "",
) -> None:
    """Check everything on disk: database, manifests, records, transcript, every stored chunk. Changes nothing."""
    from cipherward.cli.findings import show
    from cipherward.coordinator.fsck import Places, check

    show(check(Places(folder, database, blobs)), json=json)


def add_to(app: typer.Typer) -> None:
    """Into the group ``coordinator``."""
    app.command(epilog="Example: cipherward coordinator run --dir hub --listen 0.0.0.0:7443")(run)
    app.command(epilog="Example: cipherward coordinator status --dir hub")(status)
    app.command(epilog="Example: cipherward coordinator fsck --dir hub")(fsck)
