"""``cipherward site run``, ``status``, ``ledger``, ``policy check``, ``export-model`` and ``fsck``."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer

SITE = Path("site")
Folder = Annotated[Path, typer.Option("--dir", help="The site's folder, as `site init` made it.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

policy_app = typer.Typer(name="policy", help="The hospital's own rules.", no_args_is_help=True)


def run(
    coordinator: Annotated[str, typer.Option(help="HOST:PORT of the coordinator.")],
    folder: Folder = SITE,
    trainer_socket: Annotated[
        Path | None,
        typer.Option(help="Use the trainer that listens there.  [default: start one of its own]"),
    ] = None,
    once_finished: Annotated[
        bool, typer.Option("--once-finished", help="End when all studies known here have ended.")
    ] = False,
    json_logs: Annotated[bool, typer.Option("--json-logs", help="Log one JSON object a line.")] = False,
    metrics_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Serve /metrics, /healthz and /readyz on 127.0.0.1 there."),
    ] = None,
) -> None:
    """Take part in the consortium's studies until SIGTERM or SIGINT. The log goes to standard output."""
    from cipherward.clock import SystemClock
    from cipherward.site_agent.client.channel import check_address
    from cipherward.site_agent.daemon.agent import Options
    from cipherward.site_agent.daemon.agent import run as serve
    from cipherward.site_agent.daemon.logging import make_logger
    from cipherward.site_agent.daemon.metrics import SiteMetrics

    check_address(coordinator)  # before torch is loaded for nothing
    metrics = SiteMetrics()
    options = Options(folder, coordinator, trainer_socket, once_finished, metrics_port)
    serve(options, SystemClock(), make_logger(json_lines=json_logs, observe=metrics.observe), metrics)


def status(folder: Folder = SITE, json: Json = False) -> None:
    """What this site knows of its studies: rounds, figures, refusals. Works whether or not the agent runs."""
    from cipherward.clock import SystemClock
    from cipherward.site_agent import status as site_status
    from cipherward.site_agent.offline import open_offline

    with open_offline(folder, SystemClock()) as site:
        found = site_status.status(site, SystemClock())
    if json:
        _print_json(found)
        return
    from cipherward.cli.site_view import print_status

    print_status(found)


def ledger(
    folder: Folder = SITE,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the spending over time into FILE.svg or FILE.html.")
    ] = None,
    json: Json = False,
) -> None:
    """Privacy spent on each data set and by each study, what is left, how many rounds that pays for, and every
    event."""
    from cipherward.clock import SystemClock
    from cipherward.site_agent.offline import open_offline
    from cipherward.site_agent.spending import ledger_status

    with open_offline(folder, SystemClock()) as site:
        found = ledger_status(site)
    if plot is not None:
        from cipherward.site_agent.spending_plot import write

        write(found["data_sets"], plot)
    if json:
        _print_json(found)
        return
    from cipherward.cli.site_view import print_ledger

    print_ledger(found)


def policy_check(
    manifest: Annotated[
        Path | None, typer.Argument(help="A signed study manifest.  [default: check the policy alone]")
    ] = None,
    folder: Folder = SITE,
    json: Json = False,
) -> None:
    """Check policy.toml, and whether it allows a study: every reason against it, its budget, who can open an
    update, and what the noise rests on. Exits 1 if it does not."""
    from cipherward.clock import SystemClock
    from cipherward.site_agent.offline import open_offline
    from cipherward.site_agent.policy_check import check_file

    with open_offline(folder, SystemClock()) as site:
        found = check_file(site, manifest)
    if json:
        _print_json(found)
    elif manifest is None:
        typer.echo("the policy is well-formed")
    else:
        from cipherward.cli.site_view import print_policy_check

        print_policy_check(found)
    if not found["allowed"]:
        raise typer.Exit(1)


def export_model(
    study: Annotated[str, typer.Argument(help="The study's name.")],
    out: Annotated[Path, typer.Option(help="FILE.npz, or any other name for raw little-endian float32.")],
    folder: Folder = SITE,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
) -> None:
    """Write the newest model of a study to a file, and what it is to FILE.json."""
    from cipherward.clock import SystemClock
    from cipherward.site_agent.offline import open_offline
    from cipherward.site_agent.status import export_model as export

    with open_offline(folder, SystemClock()) as site:
        found = export(site, study, out, force=force)
    typer.echo(f"{out}: {found['parameters']} parameters, after round {found['round']}")


def fsck(folder: Folder = SITE, json: Json = False) -> None:
    """Check everything on disk: database, ledger, transcript, models, outbox, modes. Changes nothing."""
    from cipherward.cli.findings import show
    from cipherward.site_agent.fsck import check

    show(check(folder), json=json)


def add_to(app: typer.Typer) -> None:
    """Add the commands to the group ``site``."""
    app.command(epilog="Example: cipherward site run --dir cleveland --coordinator hub.example:7443")(run)
    app.command(epilog="Example: cipherward site status --dir cleveland --json")(status)
    app.command(epilog="Example: cipherward site ledger --dir cleveland --plot spending.svg")(ledger)
    policy_app.command(
        "check", epilog="Example: cipherward site policy check --dir cleveland heart.manifest"
    )(policy_check)
    app.add_typer(policy_app)
    app.command(
        "export-model", epilog="Example: cipherward site export-model heart --dir cleveland --out heart.npz"
    )(export_model)
    app.command(epilog="Example: cipherward site fsck --dir cleveland")(fsck)


def _print_json(value: dict[str, Any]) -> None:
    typer.echo(json_module.dumps(value, indent=1, sort_keys=False))
