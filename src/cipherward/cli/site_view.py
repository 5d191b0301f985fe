"""A site's status and ledger as tables for people."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table


def _table(console: Console, title: str, columns: list[str], rows: list[list[object]]) -> None:
    if not rows:
        return
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row))
    console.print(table)


def _short(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}g}"


def _epsilon(item: dict[str, Any], key: str) -> str:
    """JSON has no infinity: there None stands for it."""
    return "" if key not in item else "inf" if item[key] is None else _short(item[key])


def print_status(found: dict[str, Any]) -> None:
    """What ``site_agent.status.status`` found."""
    console = Console()
    console.print(found["identity"], highlight=False)
    for line in filter(None, [found["problem"], *found.get("warnings", [])]):
        console.print(f"  ! {line}", highlight=False, soft_wrap=True)
    _data_sets(console, found["data_sets"])
    for study in found["studies"]:
        line = f"study {study['study']}: {study['state']}, model after round {study['model_round']}"
        console.print(f"\n{line} of {study['planned_rounds']}", highlight=False)
        if study["reason"]:
            console.print(f"  {study['reason']}", highlight=False, soft_wrap=True)
        for finding in study["findings"]:
            console.print(f"  {finding['code']}: {finding['line']}", highlight=False, soft_wrap=True)
        own = {item["round"]: item for item in study["evaluations"]}
        _table(
            console,
            "",
            ["round", "step", "sites", "loss, all (noisy)", "accuracy, all (noisy)", "AUC here", "skipped"],
            [
                [
                    entry["round"],
                    entry["step"],
                    len(entry["contributors"]) or "",
                    _short(entry["loss"]),
                    _short(entry["accuracy"]),
                    _short(own.get(entry["round"], {}).get("auc")),
                    entry["skipped"],
                ]
                for entry in study["rounds"]
            ],
        )
    for incident in found["incidents"]:
        console.print(
            f"  ! {incident['study']} round {incident['round']}: {incident['message']}",
            highlight=False,
            soft_wrap=True,
        )


def _data_sets(console: Console, items: list[dict[str, Any]]) -> None:
    _table(
        console,
        "data sets",
        ["name", "version", "patients", "epsilon spent", "of", "at delta", "rounds paid", "lost"],
        [
            [
                item["name"],
                item["version"],
                item["patients"],
                _epsilon(item, "epsilon"),
                _epsilon(item, "epsilon_ceiling"),
                item.get("delta", item.get("problem")),
                item["reservations"],
                item["lost"],
            ]
            for item in items
        ],
    )


def print_ledger(found: dict[str, Any]) -> None:
    """What ``site_agent.status.ledger_status`` found."""
    console = Console()
    console.print(f"{found['sequence']} events, head {found['head'][:16]}...", highlight=False)
    _data_sets(console, found["data_sets"])
    _table(
        console,
        "rounds that could still be paid for",
        ["study", "data set", "rounds"],
        [[item["study"], item["data_set"], item["rounds_left"]] for item in found["studies"]],
    )
    _table(
        console,
        "events",
        ["#", "kind", "data set", "version", "study", "round"],
        [
            [item[name] for name in ("sequence", "kind", "data_set", "version", "study", "round")]
            for item in found["events"]
        ],
    )
