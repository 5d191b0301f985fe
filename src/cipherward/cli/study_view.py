"""How ``cipherward study`` shows a study: one screen that is kept up to date on a terminal, plain lines elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cipherward.errors import printable
from cipherward.proto.v1.coordinator_pb2 import Phase, RoundStatus, StudyState, StudyStatus
from cipherward.wire_names import wire_name

_MOST_ROWS = 30


def headline(status: StudyStatus) -> str:
    """One line: where the study stands."""
    state = wire_name(StudyState, status.state, "STUDY_STATE_")
    phase = wire_name(Phase, status.phase, "PHASE_")
    line = f"{status.study}: {state}, round {status.round} of {status.rounds}"
    if status.state == StudyState.STUDY_STATE_RUNNING:
        line += f", {phase}"
    return printable(f"{line}, {status.reason}" if status.reason else line)


def round_line(entry: RoundStatus, sites: int) -> str:
    """One line: how a round ended."""
    if entry.aborted:
        return printable(f"round {entry.round} aborted: {entry.reason}")
    return (
        f"round {entry.round}: {len(entry.contributors)} of {sites} sites, {entry.seconds:.1f} s, "
        f"{entry.seconds_after_join:.1f} s without training, {(entry.bytes_up + entry.bytes_down) / 1e6:.1f} MB"
    )


def site_table(status: StudyStatus) -> Table:
    """Sites and their steps."""
    table = Table(box=None, pad_edge=False)
    for column in ("site", "connected", "step", "chunks", "problem"):
        table.add_column(column)
    for site in list(status.sites)[:_MOST_ROWS]:
        chunks = str(site.chunks_stored) if site.chunks_stored else ""
        texts = (site.name, "yes" if site.connected else "no", site.step, chunks, site.problem)
        table.add_row(*(Text(printable(text)) for text in texts))
    if len(status.sites) > _MOST_ROWS:
        table.add_row(f"and {len(status.sites) - _MOST_ROWS} more", "", "", "", "")
    return table


def print_status(console: Console, status: StudyStatus) -> None:
    """All of it, once."""
    console.print(headline(status))
    console.print(
        printable(f"suite {status.suite}, {status.parameters}, {status.parameter_count} parameters")
    )
    for entry in status.history:
        console.print(round_line(entry, len(status.sites)))
    console.print(site_table(status))


class Watched:
    """Shows every status that it is given."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False)
        self._said = ""
        self._rounds = 0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, status: StudyStatus) -> None:
        """The newest status."""
        for entry in list(status.history)[self._rounds :]:
            self._console.print(round_line(entry, len(status.sites)))
        self._rounds = len(status.history)
        if self._console.is_terminal:
            self._live.update(Group(Text(headline(status)), site_table(status)), refresh=True)
        elif headline(status) != self._said:
            self._said = headline(status)
            self._console.print(self._said)
