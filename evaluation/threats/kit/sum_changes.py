"""What a coordinator hands out in the place of a sum, by the name of the study. See ``changed``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cipherward.evaluation.threats.kit.changes import change, patch

Combine = Callable[[Any, list[bytes], int, int], bytes]
"""Adder, the uploads' chunks, which one it is, values in an upload: the chunk of the sum."""


class _Lying:
    """An adder whose sums are what ``combine`` makes."""

    def __init__(self, adder: Any, combine: Combine) -> None:
        self._adder, self._combine = adder, combine

    def __enter__(self) -> Any:
        self._adder.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._adder.__exit__(*error)

    def add(self, chunks: Any, index: int, length: int) -> bytes:
        return self._combine(self._adder, list(chunks), index, length)


def _raw(adder: Any, chunks: list[bytes], index: int, length: int) -> bytes:
    """The first upload, as a ciphertext of the sum."""
    total: bytes = adder.add(chunks[:1], index, length)
    return total


def _scaled(adder: Any, chunks: list[bytes], index: int, length: int) -> bytes:
    """The first upload times the number of contributors."""
    return scaled(adder._params, _raw(adder, chunks, index, length), index, length, len(chunks))


def _altered(shift: float) -> Combine:
    """So much is added to the first value, without any key: quorum suite."""

    def combine(adder: Any, chunks: list[bytes], index: int, length: int) -> bytes:
        import numpy as np

        total: bytes = adder.add(chunks, index, length)
        if index:
            return total
        params = adder._params
        residues = np.frombuffer(total, params.residue).astype(np.int64)
        residues[0] = (residues[0] + round(shift * params.scale)) % params.modulus
        return bytes(residues.astype(params.residue).tobytes())

    return combine


def scaled(params: Any, chunk: bytes, index: int, length: int, factor: int) -> bytes:
    """A chunk of a sum times a small number: public arithmetic, no key is needed."""
    import numpy as np

    from cipherward.crypto.shared_key.chunks import Sum, pack_sum, parse_sum

    if params.suite == "quorum":
        residues = np.frombuffer(chunk, params.residue).astype(np.uint64)
        return bytes((residues * factor % params.modulus).astype(params.residue).tobytes())
    primes = np.array(params.moduli, dtype=np.uint64)[:, None]

    def times(polynomial: Any) -> Any:
        # Primes have up to 60 bits: added up, not multiplied.
        total = polynomial.copy()
        for _ in range(factor - 1):
            total = (total + polynomial) % primes
        return total

    made = [Sum(times(one.c0), times(one.c1)) for one in parse_sum(params, chunk, index, length)]
    return pack_sum(params, made, index)


@change
def wrong_sums(shift: str) -> None:
    """Of studies whose name has ``raw`` in it, one site's upload is passed off as the sum; of ``scaled`` ones that
    upload times the number of contributors; in ``altered`` ones ``shift`` is added to the first value of the sum."""
    from cipherward.coordinator.aggregation.local import LocalEngine

    honest = LocalEngine.run
    kinds: dict[str, Combine] = {"raw": _raw, "scaled": _scaled, "altered": _altered(float(shift or 0))}

    def wrongly(self: Any, job: Any, store: Any, stop: Any) -> Any:
        study, adder = job.updates[0].name.partition("/")[0], job.adder
        for kind, combine in kinds.items():
            if kind in study.split("-"):
                job = replace(job, adder=lambda combine=combine: _Lying(adder(), combine))
        return honest(self, job, store, stop)

    patch(LocalEngine, "run", wrongly)


@change
def stalled_sums(_: str) -> None:
    """Studies whose name has ``stalled`` in it never get a sum: everything is committed and nothing answered."""
    import time

    from cipherward.coordinator.aggregation.base import Stopped
    from cipherward.coordinator.aggregation.local import LocalEngine

    honest = LocalEngine.run

    def stalled(self: Any, job: Any, store: Any, stop: Any) -> Any:
        if "stalled" in job.updates[0].name.partition("/")[0].split("-"):
            while not stop():
                time.sleep(0.1)
            raise Stopped
        return honest(self, job, store, stop)

    patch(LocalEngine, "run", stalled)
