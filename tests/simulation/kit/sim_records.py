"""Signed records as tuples: who has one believes it. They name each other by digest, as the real ones do."""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple


class Round(NamedTuple):
    study: str
    round: int
    model: bytes
    previous: bytes
    opened_at: float


class Join(NamedTuple):
    study: str
    round: int
    site: str
    opening: bytes
    key: bytes  # quorum: the round key; shared-key: the shared key's digest


class Plan(NamedTuple):
    study: str
    round: int
    opening: bytes
    joins: tuple[Join, ...]

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(join.site for join in self.joins)


class Commit(NamedTuple):
    study: str
    round: int
    site: str
    plan: bytes
    attempt: int
    root: bytes


class Acknowledgement(NamedTuple):
    study: str
    round: int
    site: str
    plan: bytes
    opened: tuple[tuple[str, int], ...]
    unopenable: tuple[tuple[str, int], ...]


class Close(NamedTuple):
    study: str
    round: int
    plan: bytes
    contributions: tuple[Commit, ...]
    root: bytes
    previous: bytes
    closed_at: float

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(commit.site for commit in self.contributions)


class Abort(NamedTuple):
    study: str
    round: int
    reason: str
    previous: bytes
    aborted_at: float


class Answer(NamedTuple):
    study: str
    round: int
    site: str
    plan: bytes
    close: bytes
    vector: int  # what it says: the secret that made it


class Report(NamedTuple):
    study: str
    round: int
    site: str
    close: bytes
    model: bytes


Record = Any


@lru_cache(maxsize=4096)
def digest(record: Record) -> bytes:
    """What other records name this one by."""
    return blake2b(repr(record).encode(), digest_size=8).digest()


def chained(transcript: bytes, record: Record) -> bytes:
    """The transcript behind that record."""
    return digest((transcript, digest(record)))


def model_of(value: int) -> bytes:
    """A model is the sum of all updates in it; sites and coordinator name it by these bytes."""
    return value.to_bytes(64, "big")


def value_of(model: bytes) -> int:
    """The other way round."""
    return int.from_bytes(model, "big")
