"""``cipherward demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    suite: Annotated[
        str,
        typer.Option(
            help="quorum: a key for each update, t of n sites open a sum, nobody alone anything. shared-key: every "
            "site holds the key, and one site together with the coordinator can open every update."
        ),
    ] = "quorum",
    sites: Annotated[
        int, typer.Option(min=2, max=64, help="4: the four hospitals; more: each of them in parts.")
    ] = 4,
    strategy: Annotated[
        str,
        typer.Option(
            help="fedavg, fedprox, fedadam, fedyogi: each site adds all of its own noise. dp-fedsgd: the sites "
            "share the noise of one DP-SGD step a round."
        ),
    ] = "fedavg",
    rounds: Annotated[
        int | None,
        typer.Option(min=1, max=100, help="Rounds of training; left out, as many as suit the strategy."),
    ] = None,
    epsilon: Annotated[
        float, typer.Option(min=0.1, max=100, help="Each hospital's privacy budget for the whole study.")
    ] = 3.0,
    workdir: Annotated[
        Path, typer.Option(help="Keys, state, logs and the report; an earlier demo there is replaced.")
    ] = Path("demo-run"),
    json: Annotated[Path | None, typer.Option("--json", help="Write the results to this file.")] = None,
) -> None:
    """Four real hospitals' data, one model: a coordinator and agents as real processes, encrypted, private."""
    from cipherward.evaluation.demo.run import Options, run

    run(
        Options(
            suite=suite,
            sites=sites,
            rounds=rounds,
            epsilon=epsilon,
            workdir=workdir,
            json=json,
            strategy=strategy,
        )
    )


def add_to(app: typer.Typer) -> None:
    """A command of its own, in no group."""
    app.command(epilog="Example: cipherward demo --epsilon 3 --json out.json")(demo)
