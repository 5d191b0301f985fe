"""How ``cipherward audit`` shows what it found, and how far it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from cipherward.coordinator.audit.verify import Progress as Report
from cipherward.crypto.audit import StudyAudit
from cipherward.crypto.inclusion import Proven
from cipherward.crypto.pki.anchor import Anchor
from cipherward.crypto.pki.fingerprint import show
from cipherward.errors import printable


@contextmanager
def progress_bar(*, shown: bool) -> Iterator[Report]:
    """A line on standard error that is kept up to date, if that is a terminal."""
    console = Console(stderr=True)
    if not (shown and console.is_terminal):
        yield lambda _study, _number, _done, _everything: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        tasks: dict[tuple[str, int], TaskID] = {}

        def report(study: str, number: int, done: int, everything: int) -> None:
            if (study, number) not in tasks:
                for task in tasks.values():
                    progress.remove_task(task)
                tasks.clear()
                tasks[study, number] = progress.add_task(f"{study}, round {number}", total=everything)
            progress.update(tasks[study, number], completed=done)

        yield report


def numbers(rounds: Sequence[int]) -> str:
    """``1 to 3, 5``"""
    runs: list[list[int]] = []
    for number in rounds:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join(" to ".join(map(str, run)) for run in runs)


def _rounds(rounds: Sequence[int]) -> str:
    return f"round{'s' * (len(rounds) != 1)} {numbers(rounds)}"


def to_json(audit: StudyAudit) -> dict[str, Any]:
    """Plain values."""
    finding = audit.finding
    return {
        "study": audit.study,
        "right": finding is None,
        "wrong": None
        if finding is None
        else {
            "what": finding.what,
            "round": finding.round or None,
            "site": finding.site or None,
            "chunk": finding.chunk,
        },
        "suite": audit.suite,
        "manifest_versions": audit.versions,
        "closed_rounds": audit.closed,
        "aborted_rounds": audit.aborted,
        "round_in_progress": audit.in_progress or None,
        "joins": audit.joins,
        "commits": audit.commits,
        "model_reports": audit.reports,
        "transcript_round": audit.ended,
        "transcript": audit.transcript.hex(),
        "sums_added_up": audit.added,
        "sums_not_added_up": [
            {"rounds": rounds, "reason": reason} for reason, rounds in audit.not_added.items()
        ],
        "left_out": [{"round": number, "site": site} for number, site in audit.left_out],
        "not_reported": [{"round": number, "site": site} for number, site in audit.not_reported],
    }


def _say(line: str) -> None:
    """Names may be those of a store that somebody tampered with: what the audit says of it must stand."""
    typer.echo(printable(line))


def _print_anchor(anchor: Anchor, *, compared: bool) -> None:
    _say(f"consortium {anchor.consortium}, anchor {show(anchor.fingerprint)}")
    if not compared:
        _say("not checked: that this is the right anchor; compare its fingerprint, or give --fingerprint")


def print_audits(audits: Sequence[StudyAudit], anchor: Anchor, *, compared: bool) -> None:
    """For people: what is right, what could not be checked, and what is wrong."""
    _print_anchor(anchor, compared=compared)
    for audit in audits:
        _print(audit)
    if not audits:
        _say("no studies")


def _print(audit: StudyAudit) -> None:
    going = f", round {audit.in_progress} in progress" if audit.in_progress else ""
    _say(f"{audit.study} ({audit.suite}): rounds closed {audit.closed}, aborted {audit.aborted}{going}")
    if audit.finding is not None:
        _say(f"  WRONG: {audit.finding}")
        _say("  not checked: what comes after that. Right until there:")
    _say(
        f"  signatures and chain: manifests {audit.versions}, joins {audit.joins}, commits {audit.commits}, "
        f"model reports {audit.reports}"
    )
    if audit.added:
        _say(f"  sums added up again: {_rounds(audit.added)}")
    for reason, rounds in audit.not_added.items():
        _say(f"  not checked: the sum of {_rounds(rounds)}; {reason}")
    for number, site in audit.left_out:
        _say(f"  left out of the sum of round {number}: {site}, which had committed")
    for number, site in audit.not_reported:
        _say(f"  no model report of round {number}: {site}, whose update is in the sum")
    _say(f"  transcript after round {audit.ended}: {audit.transcript.hex()}")


def proven_to_json(proven: Proven) -> dict[str, Any]:
    """Plain values."""
    item = proven.contribution
    return {
        "study": proven.study,
        "round": proven.round,
        "site": item.site,
        "attempt": item.attempt,
        "contributors": list(proven.cohort),
        "ciphertext_root": item.ciphertext_root.hex(),
        "chunk": proven.chunk,
        "leaf_hash": proven.leaf_hash.hex() or None,
        "transcript": proven.transcript.hex(),
        "head_round": proven.head_round,
        "head": proven.head.hex(),
    }


def print_proven(proven: Proven, anchor: Anchor, *, compared: bool, update: bool) -> None:
    """For people: what a proof proves, and what is left to compare."""
    _print_anchor(anchor, compared=compared)
    item = proven.contribution
    _say(
        f"{proven.study}, round {proven.round}: {item.site}'s update (attempt {item.attempt}) is in the sum of "
        f"{len(proven.cohort)}: {', '.join(proven.cohort)}"
    )
    _say(f"  ciphertext root {item.ciphertext_root.hex()}")
    if proven.chunk is not None:
        given = ", and it is the given file's" if update else ""
        _say(f"  chunk {proven.chunk} is in it, leaf hash {proven.leaf_hash.hex()}{given}")
    _say(f"  transcript after round {proven.round}: {proven.transcript.hex()}")
    if proven.head_round != proven.round:
        _say(f"  transcript after round {proven.head_round}: {proven.head.hex()}")
    _say(
        "not checked: that the sites believe this history; compare a transcript with `cipherward site status --json`"
        " of any of them"
    )
