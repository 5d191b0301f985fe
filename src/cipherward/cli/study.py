"""``cipherward study``: what an operator does with studies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(name="study", help="Start, follow and abort studies, as an operator.", no_args_is_help=True)

Folder = Annotated[Path, typer.Option("--dir", help="The operator's folder.")]
Address = Annotated[str, typer.Option("--coordinator", help="HOST:PORT of the coordinator.")]
Name = Annotated[str, typer.Option("--study", help="Which study.  [default: the one signed last]")]


@app.command(
    epilog="Example: cipherward study start study.manifest --weights initial.f32 --dir olga --coordinator hub:7443"
)
def start(
    manifest: Annotated[
        Path, typer.Argument(help="The signed manifest, as `consortium sign-study` wrote it.")
    ],
    weights: Annotated[Path, typer.Option(help="The initial weights: float32, little-endian.")],
    folder: Folder,
    coordinator: Address,
) -> None:
    """Start a study, or bring a newer version of its manifest. Doing it twice does no harm."""
    from cipherward.cli.operator_client import dial
    from cipherward.crypto.pki.armour import Kind, unarmour_signed
    from cipherward.durable import read_file
    from cipherward.proto.v1.study_pb2 import Manifest

    signed = unarmour_signed(Kind.MANIFEST, read_file(manifest))
    with dial(folder, coordinator) as client:
        client.start(signed, weights)
    started = Manifest.FromString(signed.payload)
    typer.echo(f"study {started.study}, version {started.version}: started")


@app.command(epilog="Example: cipherward study status --dir olga --coordinator hub:7443 --json")
def status(
    folder: Folder,
    coordinator: Address,
    study: Name = "",
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Where a study stands, its sites, and its rounds so far."""
    from google.protobuf.json_format import MessageToJson

    from cipherward.cli.operator_client import dial
    from cipherward.cli.study_view import print_status
    from cipherward.cli.terminal import console

    with dial(folder, coordinator) as client:
        found = client.status(study)
    if json:
        typer.echo(
            MessageToJson(found, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        )
    else:
        print_status(console(), found)


@app.command(epilog="Example: cipherward study watch --dir olga --coordinator hub:7443")
def watch(folder: Folder, coordinator: Address, study: Name = "") -> None:
    """Follow a study to its end. Goes on when the coordinator restarts."""
    import time

    from cipherward.cli.operator_client import dial
    from cipherward.cli.study_view import Watched
    from cipherward.cli.terminal import console
    from cipherward.errors import ProtocolError, UnavailableError
    from cipherward.proto.v1.coordinator_pb2 import StudyState

    with dial(folder, coordinator) as client, Watched(console()) as shown:
        name = study or client.status("").study
        while True:
            try:
                for found in client.watch(name):
                    shown.show(found)
                    if found.state == StudyState.STUDY_STATE_FINISHED:
                        return
                    if found.state == StudyState.STUDY_STATE_ABORTED:
                        raise ProtocolError(f"study {name} was aborted", why=found.reason)
            except UnavailableError as error:
                typer.echo(f"waiting for the coordinator: {error}", err=True)
            time.sleep(1.0)


@app.command(
    epilog="Example: cipherward study abort --study trial --reason 'wrong data' --dir olga --coordinator hub:7443"
)
def abort(
    folder: Folder,
    coordinator: Address,
    reason: Annotated[str, typer.Option(help="Shown to all sites and recorded.")],
    study: Annotated[str, typer.Option("--study", help="Which study.")],
) -> None:
    """End a study. It cannot be taken up again."""
    from cipherward.cli.operator_client import dial

    with dial(folder, coordinator) as client:
        client.abort(study, reason)
    typer.echo(f"study {study}: aborted")
