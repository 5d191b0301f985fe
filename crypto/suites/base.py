"""The interface of a suite, in two halves that never load each other.

The public half (``Suite``, ``SuiteParams``, ``ChunkAdder``) is what a coordinator needs: sizes, structure
checks, and addition of ciphertexts. The site's half (``SiteSide``, ``SiteCipher``) holds keys.

A vector of L values travels as ``chunk_count(L)`` chunks. Every chunk's size follows from L and its index,
so that whatever has another size is refused before anything looks inside.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from cipherward.ids import Digest

COARSEST = 0.5
"""An opened sum's error must stay below this. Every update carries the constant 1 (``payload``), and a sum is believed
if its constant is within the error of the number of contributors. Two numbers are at least 1 apart: with an error
below 1/2 no sum is within it of both, so that what one number of updates adds up to never passes for another."""


class KeyLifetime(Enum):
    """How long a key of the suite lives, which decides who makes it and whether it is ever on disk."""

    STUDY = "study"
    """One secret key for all sites and rounds, made by the site that the manifest names."""
    ATTEMPT = "attempt"
    """A key of the site's own for each attempt, in memory only."""


class SuiteParams(Protocol):
    """A named parameter set, with the bound B of the study. Immutable."""

    @property
    def suite(self) -> str:
        """Name of the suite."""

    @property
    def name(self) -> str:
        """Name of the parameter set."""

    @property
    def library(self) -> str:
        """Name and exact version of the code whose formats are used, e.g. ``tenseal 0.3.18``."""

    @property
    def bound(self) -> float:
        """B: every coordinate is clipped to |x| <= B before it is encrypted."""

    @property
    def max_sites(self) -> int:
        """Most contributors whose sum cannot overflow at this bound."""

    @property
    def values_per_chunk(self) -> int:
        """Values in every chunk but the last."""

    @property
    def justification(self) -> str:
        """Why the set is believed to have at least 128 bits of security, with the source."""

    def check_sites(self, sites: int) -> None:
        """LimitError if the sum over so many sites could overflow at this bound."""

    def chunk_count(self, length: int) -> int:
        """Chunks of a vector of ``length`` values; LimitError if there is no such vector."""

    def upload_chunk_bytes(self, index: int, length: int) -> int:
        """Exact size of an uploaded chunk; LimitError if the vector has no chunk ``index``."""

    def sum_chunk_bytes(self, index: int, length: int) -> int:
        """Exact size of a chunk of the sum; LimitError if the vector has no chunk ``index``."""

    def error_bound(self, contributors: int) -> float:
        """Largest absolute error of any coordinate of an opened sum, but for a negligible probability."""

    def check_upload_chunk(self, chunk: bytes | memoryview, index: int, length: int) -> None:
        """FormatError unless the bytes have the exact structure of this chunk. No native code."""

    def check_sum_chunk(self, chunk: bytes, index: int, length: int) -> None:
        """FormatError unless the bytes have the exact structure of this chunk of a sum. No native code."""


class ChunkAdder(Protocol):
    """Adds up the same chunk of several updates. Not to be shared between threads."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def add(self, chunks: Iterable[bytes], index: int, length: int) -> bytes:
        """The sum of chunk ``index`` over all contributors, the same bytes for the same chunks in order.

        Takes one chunk at a time: memory does not grow with the number of contributors.
        Raises FormatError or VerificationError for a bad chunk, LimitError for none or more than
        ``max_sites``, UnavailableError if the worker died or took too long (it is restarted on next use).
        """

    def close(self) -> None:
        """Stop its processes."""


class Suite(Protocol):
    """The public half of a suite."""

    @property
    def name(self) -> str:
        """As in manifests."""

    @property
    def key_lifetime(self) -> KeyLifetime:
        """Whose key it is and how long it lives."""

    @property
    def parameter_sets(self) -> Mapping[str, SuiteParams]:
        """The named sets, each at its default bound. There are no others."""

    def parameters(self, name: str, bound: float | None = None, sites: int | None = None) -> SuiteParams:
        """The set of that name, with the study's bound B and for rosters of up to ``sites`` sites.

        A suite may encode more finely for fewer sites; everyone takes ``sites`` from the manifest's roster.
        UsageError for any other name or bound, or numbers that leave no precision.
        """

    def chunk_adder(self, params: SuiteParams) -> ChunkAdder:
        """A new adder for that set."""


class SecretKey(Protocol):
    """A key that encrypts updates, opens sums, or both. Has no repr of its content and does not pickle."""

    @property
    def params(self) -> SuiteParams:
        """The set it belongs to."""


class StudyKey(SecretKey, Protocol):
    """The one key of a study (``KeyLifetime.STUDY``), which sites hand to each other."""

    def digest(self, context: bytes) -> Digest:
        """What holders compare to know that they hold the same key. ``context``: the manifest's digest."""

    def reveal(self) -> bytes:
        """The key's bytes, to seal it to another site or to store it. Never log or send them bare."""


class SiteCipher(Protocol):
    """Encrypts updates and opens sums under one key, in a process of its own."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def encrypt(self, vector: NDArray[np.floating[Any]]) -> Iterator[bytes]:
        """The chunks of one update: finite values (1-d, float32 or float64) with |x| <= B.

        Raises LimitError for values that are not finite or exceed B, UnavailableError if the worker failed.
        """

    def open_sum(self, chunks: Iterable[bytes], length: int, contributors: int) -> NDArray[np.float64]:
        """The sum's ``length`` values, within ``error_bound(contributors)``.

        Raises FormatError for chunks of another structure or number, VerificationError if the suite can tell
        that it is not the sum under this key, UnavailableError if the worker failed.
        """

    def close(self) -> None:
        """Stop its process, and with it the copy of the key there."""


class SiteSide(Protocol):
    """The half of a suite that holds keys. The coordinator never imports an implementation."""

    def cipher(self, key: SecretKey, context: bytes, threads: int | None = None) -> SiteCipher:
        """Encryption and opening under ``key``, in at most ``threads`` threads; None: as the suite sees fit.

        ``context`` names the plan under which it happens (manifest and plan record, framed): public
        randomness that all contributors must share follows from it, where the suite has any.
        """


class StudyKeySide(SiteSide, Protocol):
    """What a suite with ``KeyLifetime.STUDY`` has besides."""

    def generate_key(self, params: SuiteParams) -> StudyKey:
        """A fresh key. UnavailableError if the worker failed."""

    def load_key(self, params: SuiteParams, content: bytes) -> StudyKey:
        """From ``StudyKey.reveal()``'s bytes; FormatError if they are not a key of that set."""


class OneTimeKey(SecretKey, Protocol):
    """The key of one attempt (``KeyLifetime.ATTEMPT``): encrypts one update, once. It is never on disk."""

    def deal(self, threshold: int, members: int) -> list[bytes]:
        """Shares of the key for the points 1 to ``members``, in order; any ``threshold`` give the key.

        Calling it again gives the same shares. UsageError unless members/2 < threshold <= members.
        """


@dataclass(frozen=True, slots=True)
class Combined:
    """What answers add up to: the key of the sum, and the points whose answers do not lie with the others.

    A wrong point accuses the member *or* a dealer who dealt it a wrong share: never blame automatically.
    """

    key: SecretKey
    wrong: tuple[int, ...]


class OneTimeKeySide(SiteSide, Protocol):
    """What a suite with ``KeyLifetime.ATTEMPT`` has besides: keys that are shared, t of n."""

    def generate_key(self, params: SuiteParams, hedge: bytes) -> OneTimeKey:
        """A fresh key from the operating system's randomness, hedged with ``hedge``.

        ``hedge``: digest of the update and everything that names this attempt, framed, so that a cloned or
        restored machine whose randomness repeats does not use one key for two updates.
        """

    def share_bytes(self, params: SuiteParams) -> int:
        """Size of a share, and of a sum of shares."""

    def add_shares(self, params: SuiteParams, shares: Sequence[bytes]) -> bytes:
        """A member's answer: the sum of the shares that U's dealers gave it. FormatError for bad bytes."""

    def combine(
        self, params: SuiteParams, answers: Mapping[int, bytes], threshold: int, contributors: int
    ) -> Iterator[Combined]:
        """Keys that the answers by point (1 to n) allow, the likeliest first: where all answers agree, the one.

        More answers than ``threshold`` let wrong ones be detected, and located up to half their number; beyond
        that only opening the sum can tell the right key, so that a caller goes on to the next one when
        ``open_sum`` refuses. Raises at the call UnavailableError for fewer than ``threshold`` answers and
        FormatError for bad bytes, and in the place of a first key VerificationError if there is none.
        """
