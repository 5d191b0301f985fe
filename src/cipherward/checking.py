"""What both ``fsck`` commands share: findings, and how damage is named instead of ending the command."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from cipherward.errors import CipherwardError, OutageError


@dataclass
class Findings:
    """Lines for people."""

    problems: list[str] = field(default_factory=list)
    """What is not as it was acknowledged."""
    notes: list[str] = field(default_factory=list)
    """What an interrupted write left behind. It harms nothing, and goes at the daemon's next start."""

    @contextmanager
    def about(self, what: str) -> Iterator[None]:
        """Whatever ends the block is a problem of ``what``: damaged bytes make our code and others' raise anything.

        Only OutageError goes on: a server that does not answer has nothing damaged.
        """
        try:
            yield
        except OutageError:
            raise
        except CipherwardError as error:
            self.problems.append(f"{what}: {error}")
        except DBAPIError as error:
            self.problems.append(f"{what}: the database cannot read it ({_line(error.orig)})")
        except Exception as error:  # noqa: BLE001  see above
            self.problems.append(f"{what}: it cannot be read ({type(error).__name__}: {_line(error)})")

    def modes(self, files: Iterable[Path]) -> None:
        """Secret files and folders that others than their owner may read."""
        for path in files:
            try:
                mode = path.stat().st_mode
            except OSError:
                continue  # gone, or named by the check that reads it
            if mode & 0o077:
                wanted = 700 if path.is_dir() else 600
                run = f"chmod {wanted} {shlex.quote(str(path))}"
                self.problems.append(f"{path}: its mode {mode & 0o777:04o} lets others read it; run: {run}")


def _line(error: object) -> str:
    return " ".join(str(error).split())[:200]


def looked_at_twice(look: Callable[[], Findings]) -> Findings:
    """What ``look`` finds twice: a daemon may be at work meanwhile, and what it moved is in place again by then."""
    first = look()
    if not first.problems and not first.notes:
        return first
    again = look()
    return Findings(
        [line for line in first.problems if line in again.problems],
        [line for line in first.notes if line in again.notes],
    )
