"""``cipherward bench``: measured on this machine, now."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cipherward.evaluation.bench.records import Record

app = typer.Typer(
    name="bench",
    help="Measure what encryption, rounds and training cost, here and now.",
    no_args_is_help=True,
)

Json = Annotated[Path | None, typer.Option("--json", help="Write the records to this file.")]


def _prepared(path: Path | None) -> None:
    from cipherward.evaluation.output import check_writable

    if path is not None:
        check_writable(path)


def _finish(records: list[Record], path: Path | None) -> None:
    from cipherward.evaluation.bench.records import write

    if path is not None:
        write(records, path)


@app.command(epilog="Example: cipherward bench crypto --parameters 1000000 --sites 4 --json crypto.json")
def crypto(
    parameters: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Model size; repeat for several.  [default: 1000000, 10000000, 100000000]"),
    ] = None,
    sites: Annotated[
        list[int] | None, typer.Option(min=2, help="Cohort; repeat for several.  [default: 4, 16, 64]")
    ] = None,
    json: Json = None,
) -> None:
    """Encrypt, add, open, share and bytes a parameter of every suite, beside plain float32 in the same run.

    The whole table takes about a quarter of an hour and 6 GB. The shared-key suite is measured up to 10 M
    parameters and 16 sites.
    """
    from cipherward.evaluation.bench.crypto import run
    from cipherward.evaluation.bench.table import Table

    _prepared(json)
    with Table("encryption") as table:
        run(
            parameters or [1_000_000, 10_000_000, 100_000_000],
            sites or [4, 16, 64],
            table.add,
            table.note,
        )
    _finish(table.records, json)


@app.command(name="round", epilog="Example: cipherward bench round --parameters 1000000 --json round.json")
def round_(
    parameters: Annotated[int, typer.Option(min=100, help="Model size.")] = 1_000_000,
    sites: Annotated[int, typer.Option(min=2, max=64, help="Sites.")] = 4,
    rounds: Annotated[int, typer.Option(min=2, help="Rounds; the first is not counted.")] = 4,
    json: Json = None,
) -> None:
    """A round in real processes with encryption and with none, training excluded. The unencrypted suite exists
    in this benchmark only: real agents refuse it."""
    from cipherward.evaluation.bench.round import run
    from cipherward.evaluation.bench.table import Table

    _prepared(json)
    with Table("a round, training excluded") as table:
        run(parameters, sites, rounds, table.add)
    _finish(table.records, json)


@app.command(epilog="Example: cipherward bench coordinator --figure ingest --json coordinator.json")
def coordinator(
    figure: Annotated[
        list[str] | None,
        typer.Option(help="ingest, round, restart or checking; repeat for several.  [default: all]"),
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(help="quorum or shared-key; repeat for several.  [default: quorum; rounds in both]"),
    ] = None,
    sites: Annotated[
        int | None, typer.Option(min=3, max=1000, help="In place of each figure's own number.")
    ] = None,
    parameters: Annotated[
        int | None, typer.Option(min=100, help="Model size in place of each figure's own.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Of ingest and restart; the median counts.")] = 5,
    clients: Annotated[int, typer.Option(min=1, max=8, help="Client processes that hold the sites.")] = 4,
    json: Json = None,
) -> None:
    """A coordinator under load, over mutual TLS, every sum compared with the right one.

    ingest: 200 uploads of 1 M parameters at once, beside a bare gRPC stream and a bare disk in the same run.
    round: 100 sites through a quorum round, 1,000 through a shared-key round. restart: kill -9 in the middle of a
    round of 1,000 sites. checking: what collective verification costs a site. Sites and coordinator share this
    machine.
    """
    from cipherward.evaluation.bench.coordinator.run import Figure, run
    from cipherward.evaluation.bench.table import Table

    _prepared(json)
    with Table("a coordinator under load") as table:
        run(figure or list(Figure), suite, sites, parameters, repeats, clients, table.add, table.note)
    _finish(table.records, json)


@app.command(epilog="Example: cipherward bench training --model small-cnn --json training.json")
def training(
    model: Annotated[
        list[str] | None,
        typer.Option(help="head, small-cnn or resnet-18; repeat for several.  [default: all]"),
    ] = None,
    json: Json = None,
) -> None:
    """A step of DP-SGD beside the same step without privacy and beside plain Opacus, same batch, same run.

    On one CPU thread, and on a GPU where there is one (in mixed precision): a linear head on 1,280 features, a small
    CNN on 28 x 28 pictures, ResNet-18 on 224 x 224. The column "sites" is the batch. noise_share is the part of a
    step that the secret noise takes; noise is the secret generator beside torch's own.
    """
    from cipherward.evaluation.bench.table import Table
    from cipherward.evaluation.bench.training.run import ALL, run

    _prepared(json)
    with Table("a training step") as table:
        run(model or ALL, table.add, table.note)
    _finish(table.records, json)
