"""The public half: plain float32 up, float64 sums down."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import numpy as np

from cipherward.crypto.suites.base import ChunkAdder, KeyLifetime, SuiteParams
from cipherward.errors import FormatError, LimitError, UsageError

VALUES = 65536


@dataclass(frozen=True, slots=True)
class PlainParams:
    """See ``SuiteParams``."""

    bound: float = 16.0
    suite: str = "plain"
    name: str = "float32"
    library: str = "numpy"
    max_sites: int = 1000
    values_per_chunk: int = VALUES
    justification: str = "none: nothing is encrypted"

    def check_sites(self, sites: int) -> None:
        """At most ``max_sites``."""
        if not 1 <= sites <= self.max_sites:
            raise LimitError(f"{sites} contributors", why=f"the limit is {self.max_sites}")

    def chunk_count(self, length: int) -> int:
        """Chunks of 64 Ki values."""
        return -(-length // VALUES)

    def _values(self, index: int, length: int) -> int:
        if not 0 <= index < self.chunk_count(length):
            raise LimitError(f"there is no chunk {index}")
        return min(VALUES, length - index * VALUES)

    def upload_chunk_bytes(self, index: int, length: int) -> int:
        """4 bytes a value."""
        return 4 * self._values(index, length)

    def sum_chunk_bytes(self, index: int, length: int) -> int:
        """8 bytes a value."""
        return 8 * self._values(index, length)

    def error_bound(self, contributors: int) -> float:
        """Of float32 addends."""
        return contributors * self.bound * 2**-23

    def check_upload_chunk(self, chunk: bytes | memoryview, index: int, length: int) -> None:
        """Size only."""
        if len(chunk) != self.upload_chunk_bytes(index, length):
            raise FormatError(f"chunk {index} has {len(chunk)} bytes")

    def check_sum_chunk(self, chunk: bytes, index: int, length: int) -> None:
        """Size only."""
        if len(chunk) != self.sum_chunk_bytes(index, length):
            raise FormatError(f"chunk {index} of the sum has {len(chunk)} bytes")


class PlainAdder:
    """See ``ChunkAdder``."""

    def __init__(self, params: PlainParams) -> None:
        self._params = params

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, chunks: Iterable[bytes], index: int, length: int) -> bytes:
        """The sum, float64."""
        total = np.zeros(self._params.upload_chunk_bytes(index, length) // 4)
        for chunk in chunks:
            self._params.check_upload_chunk(chunk, index, length)
            total += np.frombuffer(chunk, dtype="<f4")
        return total.tobytes()

    def close(self) -> None:
        """Nothing to stop."""


class PlainSuite:
    """See ``Suite``."""

    name = "plain"
    key_lifetime = KeyLifetime.STUDY
    parameter_sets: Mapping[str, SuiteParams] = {"float32": PlainParams()}

    def parameters(self, name: str, bound: float | None = None, sites: int | None = None) -> SuiteParams:
        """The one set."""
        if name not in self.parameter_sets:
            raise UsageError(f"there is no parameter set {name!r}")
        params = PlainParams()
        return params if bound is None else replace(params, bound=bound)

    def chunk_adder(self, params: SuiteParams) -> ChunkAdder:
        """In this process."""
        return PlainAdder(PlainParams(params.bound))


SUITE = PlainSuite()
