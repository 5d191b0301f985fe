"""A site's status, its ledger and its policy's answers as lines and tables for people."""

from __future__ import annotations

import math
from typing import Any

from rich.console import Console
from rich.table import Table

from cipherward.cli.terminal import console as new_console
from cipherward.errors import printable


def _table(console: Console, title: str, columns: list[str], rows: list[list[object]]) -> None:
    if not rows:
        return
    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name, overflow="fold")  # a name that is cut short is no name
    for row in rows:
        table.add_row(*("" if value is None else printable(str(value)) for value in row))
    console.print(table)


def _short(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}g}"


def _noise(entry: dict[str, Any]) -> str:
    """Of the sum, and what epsilon counts; nothing for a round without a sum."""
    there, promised = entry["noise_realised"], entry["noise_promised"]
    return "" if there is None else f"{_short(there, 3)} ({_short(promised, 3)})"


def _epsilon(item: dict[str, Any], key: str) -> str:
    """JSON has no infinity: there None stands for it."""
    return "" if key not in item else "inf" if item[key] is None else _short(item[key])


def print_status(found: dict[str, Any]) -> None:
    """What ``site_agent.status.status`` found."""
    console = new_console()
    console.print(found["identity"])
    for line in filter(None, [found["problem"], *found.get("warnings", [])]):
        console.print(printable(f"  ! {line}"), soft_wrap=True)
    _data_sets(console, found["data_sets"])
    for study in found["studies"]:
        line = f"study {study['study']}: {study['state']}, model after round {study['model_round']}"
        console.print(f"\n{line} of {study['planned_rounds']}")
        if study["reason"]:
            console.print(printable(f"  {study['reason']}"), soft_wrap=True)
        for finding in study["findings"]:
            console.print(printable(f"  {finding['code']}: {finding['line']}"), soft_wrap=True)
        own = {item["round"]: item for item in study["evaluations"]}
        shared = any(entry["noise_promised"] for entry in study["rounds"])
        _table(
            console,
            "",
            [
                "round",
                "step",
                "sites",
                *(["noise (promised)"] if shared else []),
                "loss, all (noisy)",
                "accuracy, all (noisy)",
                "AUC here",
                "skipped",
            ],
            [
                [
                    entry["round"],
                    entry["step"],
                    len(entry["contributors"]) or "",
                    *([_noise(entry)] if shared else []),
                    _short(entry["loss"]),
                    _short(entry["accuracy"]),
                    _short(own.get(entry["round"], {}).get("auc")),
                    entry["skipped"],
                ]
                for entry in study["rounds"]
            ],
        )
    for incident in found["incidents"]:
        line = f"  ! {incident['study']} round {incident['round']}: {incident['message']}"
        console.print(printable(line), soft_wrap=True)


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
    """What ``site_agent.spending.ledger_status`` found."""
    console = new_console()
    console.print(f"{found['sequence']} events, head {found['head'][:16]}...")
    for item in found["data_sets"]:
        _account(console, item)
    for item in found["studies"]:
        _outlook(console, item)
    _table(
        console,
        "events",
        ["#", "kind", "data set", "version", "study", "round", "cost"],
        [
            [item[name] for name in ("sequence", "kind", "data_set", "version", "study", "round", "cost")]
            for item in found["events"]
        ],
    )


def _account(console: Console, item: dict[str, Any]) -> None:
    """One data set: a bar, and what each study took."""
    console.print(f"\ndata set {item['name']}, version {item['version']}, {item['patients']} patients")
    if "problem" in item:
        console.print(f"  {item['problem']}")
        return
    spent, ceiling = item["epsilon"], item["epsilon_ceiling"]
    line = f"epsilon {_epsilon(item, 'epsilon')} of {_epsilon(item, 'epsilon_ceiling')} spent"
    left = f", {_short(item['epsilon_left'])} left" if ceiling is not None else ""
    bar = "" if ceiling is None else f"{budget_bar(spent, ceiling)} "
    console.print(f"  {bar}{line} at delta {item['delta']:g}{left}")
    _table(
        console,
        "",
        ["study", "rounds paid", "lost", "epsilon by itself"],
        [
            [share["study"], share["rounds_paid"], share["lost"], _epsilon(share, "epsilon_alone")]
            for share in item["studies"]
        ],
    )


def _outlook(console: Console, item: dict[str, Any]) -> None:
    to_come, left = item["rounds_to_come"], item["rounds_left"]
    line = (
        f"study {item['study']} on {item['data_set']}: {item['rounds_paid']} of {item['rounds']} rounds paid"
    )
    if left is not None:
        enough = "enough" if left >= to_come else "not enough"
        line += f", {left} more could be paid for, {to_come} to come: {enough}"
    console.print(line, soft_wrap=True)


def budget_bar(spent: float | None, ceiling: float, width: int = 30) -> str:
    """``[######----]``; spent None is no bound: all of it."""
    full = width if spent is None else min(width, math.ceil(width * spent / ceiling))
    return f"[{'#' * full}{'-' * (width - full)}]"


def print_policy_check(found: dict[str, Any]) -> None:
    """What ``site_agent.policy_check.check_file`` found of a study."""
    console = new_console()

    def say(line: str) -> None:
        console.print(printable(line), soft_wrap=True)

    say(found["trust"])
    budget = found["budget"]
    if budget is not None:
        to_pay, left = budget["rounds_to_pay"], budget["rounds_left"]
        say(
            f"Budget of data set {found['data_set']}: epsilon {_epsilon(budget, 'spent')} of "
            f"{_epsilon(budget, 'ceiling')} spent at delta {budget['delta']:g}; "
            + (
                f"the study's {to_pay} unpaid rounds would make it {_epsilon(budget, 'after')}, and {left} such "
                "rounds could be paid for."
                if to_pay
                else "all of the study's rounds are paid."
            )
        )
    say(found["noise"]["line"])
    _table(
        console,
        "what the whole study costs a patient, at most, by itself",
        ["against", "noise", "epsilon"],
        [
            [item["against"], f"x {item['noise']:.3g}", _epsilon(item, "epsilon")]
            for item in found["noise"]["guarantees"]
        ],
    )
    for finding in found["findings"]:
        say(f"{finding['code']}: {finding['line']}")
    say(f"study {found['study']}: {'allowed' if found['allowed'] else 'refused'}")
