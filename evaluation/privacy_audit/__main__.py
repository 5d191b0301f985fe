"""``python -m cipherward.evaluation.privacy_audit``: audit the sites' training, and show that broken training
is seen."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cipherward.durable import write_file
from cipherward.errors import UsageError
from cipherward.evaluation.output import console
from cipherward.evaluation.privacy_audit.audit import audit, calibrated
from cipherward.evaluation.privacy_audit.checks import CHECKS
from cipherward.evaluation.privacy_audit.mutants import MUTANTS, catch
from cipherward.evaluation.privacy_audit.path import DP_FEDSGD, STRATEGIES


def main(
    strategy: Annotated[str, typer.Option(help=" or ".join(STRATEGIES))] = STRATEGIES[0],
    epsilon: Annotated[float, typer.Option(min=0.1, max=50, help="What the study promises.")] = 3.0,
    delta: Annotated[float, typer.Option(min=1e-10, max=0.1)] = 1e-5,
    sampling_rate: Annotated[float, typer.Option(min=1e-4, max=1, help="1 is the hardest to keep.")] = 1.0,
    steps: Annotated[int, typer.Option(min=1, help="A round; 1 with dp-fedsgd.")] = 1,
    rounds: Annotated[int, typer.Option(min=1)] = 1,
    canaries: Annotated[int, typer.Option(min=10, max=10_000)] = 1000,
    seed: Annotated[int, typer.Option(help="Of the coins that put canaries in; noise has none.")] = 0,
    json: Annotated[Path | None, typer.Option("--json", help="Write the results to this file.")] = None,
) -> None:
    """Audit the training that sites run, in one run, and every broken variant of it. Exits 1 if more was proved than is
    promised, a check fails, or a broken variant passes. Example: --strategy dp-fedsgd --epsilon 3"""
    if strategy not in STRATEGIES:
        raise UsageError(f"there is no audit of {strategy!r}", fix=f"Choose one of {', '.join(STRATEGIES)}")
    if strategy == DP_FEDSGD and steps != 1:
        raise UsageError(f"{DP_FEDSGD} has one step a round", fix="Leave --steps out, and set --rounds")
    setting = calibrated(strategy, epsilon, delta, rate=sampling_rate, steps=steps, rounds=rounds)
    found = [audit(setting, canaries=canaries, delta=delta, seed=seed)]
    if strategy == DP_FEDSGD:
        found.append(audit(setting, canaries=canaries, delta=delta, seed=seed, opened=True))
    checks = [check(setting) for check in CHECKS.values()]
    caught = [catch(mutant, setting, canaries=canaries, delta=delta, seed=seed) for mutant in MUTANTS]

    out = console()
    table = Table(
        "what is seen", "claimed", f"proved, {found[0].confidence:.0%}", "right of guessed", "holds"
    )
    for one in found:
        guessed = f"{one.right} of {one.guesses}"
        table.add_row(
            one.view, f"{one.claimed:.3f}", f"{one.proved:.3f}", guessed, "yes" if one.holds else "NO"
        )
    out.print(
        f"{strategy}, sigma {setting.noise_multiplier:.4g}, {canaries} canaries: epsilon at delta {delta:g}"
    )
    out.print(table)
    table = Table("training as it is", "figure", "allowed", "passed")
    for check in checks:
        allowed = f"{check.low:.3f} to {check.high:.3f}"
        table.add_row(check.name, f"{check.figure:.3f}", allowed, "yes" if check.passed else "NO")
    out.print(table)
    table = Table("broken training", "seen by", "figure", "allowed", "caught")
    for mutant, result in zip(MUTANTS, caught, strict=True):
        allowed = f"{result.low:.3f} to {result.high:.3f}"
        said = "yes" if result.caught else "NO"
        table.add_row(mutant.title, result.by, f"{result.figure:.3f}", allowed, said)
    out.print(table)
    if json is not None:
        content = {
            "audits": [one.to_json() for one in found],
            "checks": [{**_plain(check), "passed": check.passed} for check in checks],
            "mutants": [{**_plain(result), "caught": result.caught} for result in caught],
        }
        write_file(json, (json_module.dumps(content, indent=1) + "\n").encode())
    good = [
        *(one.holds for one in found),
        *(check.passed for check in checks),
        *(one.caught for one in caught),
    ]
    if not all(good):
        raise typer.Exit(1)


def _plain(value: object) -> dict[str, object]:
    from dataclasses import asdict

    return asdict(value)  # type: ignore[call-overload, no-any-return]


if __name__ == "__main__":
    typer.run(main)
