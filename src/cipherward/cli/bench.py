"""``cipherward bench``: measured on this machine, now."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cipherward.evaluation.bench.records import Record

app = typer.Typer(
    name="bench", help="Measure what encryption and rounds cost, here and now.", no_args_is_help=True
)

Json = Annotated[Path | None, typer.Option("--json", help="Write the records to this file.")]


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

    with Table("a round, training excluded") as table:
        run(parameters, sites, rounds, table.add)
    _finish(table.records, json)
