"""In the place of the shared-key suite's CKKS, whose native workers take seconds to start: vectors in clear. All that
is around the encryption (keys in the relay, uploads, commits, sums, the check constant) is as in the real suite."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from cipherward.crypto.suites.base import KeyLifetime

VALUES = 8


@dataclass(frozen=True)
class Params:
    bound: float = 4.0
    suite: str = "shared-key"
    name: str = "clear"
    library: str = "clear 1"
    max_sites: int = 1000
    values_per_chunk: int = VALUES
    justification: str = "none"

    def check_sites(self, sites: int) -> None:
        """Any number."""

    def chunk_count(self, length: int) -> int:
        return -(-length // VALUES)

    def upload_chunk_bytes(self, index: int, length: int) -> int:
        return 8 * min(VALUES, length - index * VALUES)

    sum_chunk_bytes = upload_chunk_bytes

    def error_bound(self, contributors: int) -> float:
        return 0.0

    def check_upload_chunk(self, chunk: bytes, index: int, length: int) -> None:
        """Every chunk of that size will do."""

    check_sum_chunk = check_upload_chunk


class Adder:
    def __enter__(self) -> Adder:
        return self

    def __exit__(self, *_error: Any) -> None:
        """There is nothing to stop."""

    def add(self, chunks: Any, index: int, length: int) -> bytes:
        return sum(np.frombuffer(chunk, "<f8") for chunk in chunks).astype("<f8").tobytes()


SUITE = SimpleNamespace(
    name="shared-key",
    key_lifetime=KeyLifetime.STUDY,
    parameter_sets={"clear": Params()},
    parameters=lambda name, bound=None, sites=None: Params(bound or 4.0),
    chunk_adder=lambda params: Adder(),
)
