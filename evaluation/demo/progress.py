"""Live progress on a terminal, plain lines elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from cipherward.proto.v1.coordinator_pb2 import Phase, StudyStatus

_PHASES = {
    Phase.PHASE_KEYS: "sites receive the key",
    Phase.PHASE_OPEN: "sites train",
    Phase.PHASE_UPLOAD: "sites encrypt and upload",
    Phase.PHASE_ACKNOWLEDGE: "sites acknowledge shares",
    Phase.PHASE_SUM: "the coordinator adds ciphertexts",
    Phase.PHASE_UNSEAL: "sites answer",
    Phase.PHASE_RELEASE: "sites verify, open and apply the sum",
}


class Progress:
    """Steps, and the study's state while it runs."""

    def __init__(self, console: Console, sites: int, rounds: int) -> None:
        self._console, self._sites, self._rounds = console, sites, rounds
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._done = 0

    def step(self, text: str) -> None:
        """A step that takes seconds."""
        self._console.print(f"- {text}")

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, status: StudyStatus) -> None:
        """The newest state."""
        for entry in list(status.history)[self._done :]:
            self._done += 1
            if entry.aborted:
                self._console.print(f"  round {entry.round} aborted: {entry.reason}")
            else:
                self._console.print(
                    f"  round {entry.round} of {self._rounds}: {len(entry.contributors)} of {self._sites} sites, "
                    f"{entry.seconds:.1f} s, of it {entry.seconds_after_join:.1f} s after training"
                )
        if self._console.is_terminal:
            self._live.update(self._table(status), refresh=True)

    def _table(self, status: StudyStatus) -> Table:
        table = Table(
            title=f"round {status.round} of {status.rounds}: {_PHASES.get(status.phase, '')}", box=None
        )
        table.add_column("site")
        table.add_column("step")
        shown = list(status.sites)[:24]
        for site in shown:
            table.add_row(site.name, site.problem or site.step)
        if len(status.sites) > len(shown):
            table.add_row(f"and {len(status.sites) - len(shown)} more", "")
        return table
