"""The rules of ``site_agent.journal.journal`` in memory, fast enough for 100,000 histories. That they are the same
rules is what test_journal_model.py is for."""

from __future__ import annotations

from typing import Any

from sim_records import digest

from cipherward.errors import ConflictError, VerificationError
from cipherward.site_agent.journal.journal import Entry as RealEntry


class Entry:
    """As the real one, but quick to copy. Immutable by custom."""

    def __init__(self, number: int) -> None:
        self.round = number

    @property
    def cohort(self) -> tuple[str, ...]:
        return tuple((self.contributors or "").split())

    def with_values(self, values: dict[str, Any]) -> Entry:
        """A copy with these columns."""
        other = Entry(self.round)
        other.__dict__.update(self.__dict__, **values)
        return other


for _column in RealEntry.__dataclass_fields__:
    if _column != "round":
        setattr(Entry, _column, None)


class Journal:
    """What a site has promised in the rounds of one study. Survives a crash."""

    def __init__(self) -> None:
        self._entries: dict[int, Entry] = {}
        self.incidents: list[str] = []

    def entry(self, number: int) -> Entry:
        return self._entries.get(number) or Entry(number)

    def history(self) -> list[Entry]:
        return [self._entries[number] for number in sorted(self._entries)]

    def write(self, number: int, **values: Any) -> None:
        entry = self.entry(number)
        for name, value in values.items():
            known = getattr(entry, name)
            if known is not None and known != value:
                raise ConflictError(f"the {name} of round {number} is on record")
        self._entries[number] = entry.with_values(values)

    def put_join(self, number: int, join: Any) -> None:
        entry = self.entry(number)
        if entry.plan_record is not None:
            raise ConflictError(f"round {number} has its plan")
        former = entry.former_joins or ()
        if entry.join_record is not None:
            former = (*former, digest(entry.join_record))
        if number in self._entries:
            self._entries[number] = entry.with_values({"join_record": join, "former_joins": former})

    def accept_plan(self, number: int, plan: Any) -> None:
        known = self.entry(number).plan_record
        if known is None:
            self.write(number, plan_record=plan)
        elif digest(known) != digest(plan):
            self.incidents.append(f"a second plan record for round {number}")
            raise VerificationError(f"a second plan record for round {number}")

    def next_attempt(self, number: int) -> int:
        entry = self.entry(number)
        if entry.commit_record is not None:
            raise ConflictError(f"round {number} is committed")
        attempt = (entry.attempt or 0) + 1
        if number in self._entries:
            fresh = {"attempt": attempt, "chunk_count": None, "ciphertext_root": None, "share_root": None}
            self._entries[number] = entry.with_values(fresh)
        return attempt


def has_joined_with(entry: Entry, join: Any) -> bool:
    """``Entry.has_joined_with`` for records that are tuples."""
    return join == entry.join_record or digest(join) in (entry.former_joins or ())
