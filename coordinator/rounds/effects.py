"""What the machine asks of the world.

Records are signed and stored in the very transaction that stores the new state. A sum takes long, so it is
started after that; whoever starts up on a stored state starts it again (``machine.owed``).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SignRound:
    """Step 1: sign the round record."""

    round: int
    model: bytes


@dataclass(frozen=True, slots=True)
class SignPlan:
    """Step 3: sign the plan record over the joins of ``sites``, in this order."""

    round: int
    sites: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StartSum:
    """Step 5: add up the updates of ``contributors``, in this order."""

    round: int
    contributors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SignClose:
    """Step 5: sign the close record and continue the transcript with it."""

    round: int
    contributors: tuple[str, ...]
    root: bytes
    chunk_count: int


@dataclass(frozen=True, slots=True)
class SignAbort:
    """Sign the abort record in the close record's place and continue the transcript with it."""

    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class NoteUnopened:
    """Quorum: the round has a close record, and no model came of it. The next one begins from the old model,
    as its round record says; reports say why."""

    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class Discard:
    """Nothing of the round's uploads is needed any more."""

    round: int


Effect = SignRound | SignPlan | StartSum | SignClose | SignAbort | NoteUnopened | Discard
