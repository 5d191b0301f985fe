"""The demo's results on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from cipherward.evaluation.demo.results import DemoResult, figure


def show_result(console: Console, result: DemoResult) -> None:
    """Hospitals, then rounds."""
    table = Table(
        title=f"{result.strategy}, {result.suite} ({result.params}), {result.parameters} parameters",
        box=None,
        pad_edge=False,
    )
    table.add_column("hospital")
    for name in ("patients", "AUC alone", "AUC federated", "pooled, DP", "pooled", "epsilon", "delta"):
        table.add_column(name, justify="right")
    for site in result.sites:
        table.add_row(
            site.name, str(site.patients), figure(site.auc_local), figure(site.auc_federated),
            figure(site.auc_pooled_dp), figure(site.auc_pooled), f"{site.epsilon:.2f}", f"{site.delta:.0e}",
        )  # fmt: skip
    console.print()
    console.print(table)
    console.print(
        f"all hospitals' held-out patients together: pooled with DP {result.auc_pooled_dp:.3f}, "
        f"pooled without {result.auc_pooled:.3f}"
    )
    count = len(result.rounds)
    mean = {
        name: sum(getattr(entry, name) for entry in result.rounds) / count
        for name in ("bytes_up_per_param", "bytes_down_per_param", "seconds", "seconds_after_join")
    }
    console.print(
        f"a round, mean of {count}: {mean['seconds']:.1f} s, of it {mean['seconds_after_join']:.1f} s after training; "
        f"{mean['bytes_up_per_param']:.0f} B a parameter up, {mean['bytes_down_per_param']:.0f} down "
        f"(a model of {result.parameters} parameters pays for whole ciphertexts and signatures)"
    )
    if result.shared_noise is not None:
        console.print(result.shared_noise.text())
    console.print(result.audit.text())
    console.print(
        f"seconds: {result.seconds_setup:.1f} setting up, {result.seconds_study:.1f} the study, "
        f"{result.seconds_reference:.1f} the models to compare with"
    )
