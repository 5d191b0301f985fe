"""``cipherward threats``: every attack of the threat model, without and with the defence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="threats",
    help="Attack this system as its threat model says, with each defence off and on.",
    no_args_is_help=True,
)


@app.command(epilog="Example: cipherward threats run --fast --out threats; one row: --row T05")
def run(
    row: Annotated[
        list[str] | None, typer.Option("--row", help="A row's id; repeat for several.  [default: all]")
    ] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="Smaller samples; every attack is still shown to work.")
    ] = False,
    out: Annotated[
        Path, typer.Option(help="report.html, report.json and logs; an earlier run there is replaced.")
    ] = Path("threats-run"),
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Rows at a time.  [default: one more than cores]", show_default=False),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the rows' own files in OUT/work.")] = False,
) -> None:
    """Run the attacks. Exit status 1 if a row fails, or is an error: a row whose attack does not succeed with the
    defence off shows nothing."""
    from cipherward.evaluation.threats.outcome import Verdict
    from cipherward.evaluation.threats.runner import Options, run

    outcomes = run(Options(rows=row or [], fast=fast, out=out, jobs=jobs, keep=keep))
    if any(one.verdict is not Verdict.PASSED for one in outcomes):
        raise typer.Exit(1)


@app.command(name="list", epilog="Example: cipherward threats list")
def list_() -> None:
    """All threats, and about how many seconds the attack on each takes, fast and in full."""
    from rich.table import Table

    from cipherward.evaluation.output import console
    from cipherward.evaluation.threats import registry

    table = Table(box=None, pad_edge=False)
    for name in ("row", "threat"):
        table.add_column(name)
    for name in ("fast, s", "full, s"):
        table.add_column(name, justify="right")
    built = registry.built()
    for identity, title in registry.THREATS.items():
        if identity in built:
            row = registry.load(identity)
            table.add_row(identity, row.title, f"{row.fast_seconds:.0f}", f"{row.full_seconds:.0f}")
        else:
            table.add_row(identity, title, "no row yet", "")
    console().print(table)
