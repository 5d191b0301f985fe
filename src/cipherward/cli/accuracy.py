"""``cipherward accuracy``: what privacy costs, and what a federation gains, measured."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeVar

import typer

Chosen = TypeVar("Chosen", bound=StrEnum)

app = typer.Typer(
    name="accuracy",
    help="Compare training alone, federated and on pooled data at the same privacy.",
    no_args_is_help=True,
)


def _epsilon(text: str) -> float:
    from cipherward.errors import UsageError

    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise UsageError(f"{text[:40]!r} is no epsilon", fix="Give a positive number, or inf for no privacy")
    return value


def _choices(kind: type[Chosen], texts: list[str] | None) -> list[Chosen]:
    """The members named, all of them for None, in the order of their definition."""
    from cipherward.errors import UsageError

    names = [member.value for member in kind]
    unknown = [text for text in texts or () if text not in names]
    if unknown:
        raise UsageError(f"{unknown[0][:40]!r} is none of {', '.join(names)}")
    return [member for member in kind if texts is None or member.value in texts]


@app.command(
    epilog="Example: cipherward accuracy run --data features.npz --sites 4 --epsilon 3 --out results"
)
def run(
    data: Annotated[Path, typer.Option(help="Features in the MedMNIST file format, labels 0 and 1.")],
    sites: Annotated[
        list[int] | None,
        typer.Option(min=3, max=32, help="Repeat for several.  [default: 4, 8, 16, 32]"),
    ] = None,
    epsilon: Annotated[
        list[str] | None,
        typer.Option(help="inf: no privacy; repeat for several.  [default: 1, 3, 8, inf]"),
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="iid or label-skew; repeat for several.  [default: both]")
    ] = None,
    arms: Annotated[
        list[str] | None,
        typer.Option(
            help="alone, fedavg, dp-fedsgd, pooled-dp or pooled; repeat for several.  [default: all]"
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each cell.")] = 5,
    encryption: Annotated[
        str,
        typer.Option(
            help="simulated: the suite's rounding and errors; real: every sum encrypted and opened."
        ),
    ] = "simulated",
    real_cell: Annotated[
        int,
        typer.Option(
            min=0,
            help="Instead of the grid: so many runs of one cell of dp-fedsgd by a coordinator and agents as real "
            "processes, each beside its simulation. The cell is the first of --sites, --split and --epsilon.",
        ),
    ] = 0,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes.  [default: one a core]", show_default=False)
    ] = None,
    out: Annotated[
        Path, typer.Option(help="results.json, table.md and plots; a run that was ended goes on there.")
    ] = Path("accuracy-run"),
) -> None:
    """The grid of Adnan et al. 2022 on data at hand: hospitals alone, federated averaging with local privacy, shared
    noise (dp-fedsgd), and all patients in one place, with as many sites, at these epsilons.

    Every finished run is in results.json at once: a second call computes what is missing.
    """
    from cipherward.evaluation.accuracy.constants import EPSILONS, Arm
    from cipherward.evaluation.accuracy.partition import Partition
    from cipherward.evaluation.accuracy.runner import Options, run_grid, run_real
    from cipherward.evaluation.accuracy.sums import Encryption

    options = Options(
        data=data,
        sites=sorted(set(sites or (4, 8, 16, 32))),
        epsilons=sorted({_epsilon(text) for text in epsilon}) if epsilon else EPSILONS,
        partitions=_choices(Partition, split),
        arms=_choices(Arm, arms),
        seeds=seeds,
        encryption=_choices(Encryption, [encryption])[0],
        jobs=jobs or len(os.sched_getaffinity(0)),
        out=out,
    )
    if real_cell:
        run_real(options, real_cell)
    else:
        run_grid(options)
