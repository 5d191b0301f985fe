"""``cipherward bench crypto``: what encryption costs, beside the same steps on plain float32 in the same run.

Every step goes through the suites' own interface, workers and checks included: what is timed is what an agent
and a coordinator do, less the network. Sums are compared with the plain ones and the error bound.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from cipherward.crypto.suites.base import SuiteParams
from cipherward.crypto.suites.registry import PACKAGES, suite
from cipherward.crypto.suites.site_side import study_key_side
from cipherward.errors import VerificationError
from cipherward.evaluation.bench.memory import PeakMemory
from cipherward.evaluation.bench.records import Record

Report = Callable[[Record], None]
REPEATS = 3


def _median_seconds(step: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _plain_rates(vector: NDArray[np.float32], sites: int) -> dict[str, float]:
    """Parameters a second of the unencrypted equivalents: serialise, add up in float64, divide."""
    blob = vector.tobytes()
    total = np.zeros(vector.size)

    def add() -> None:
        for _ in range(sites):
            np.add(total, np.frombuffer(blob, dtype=np.float32), out=total)

    return {
        "encrypt": vector.size / _median_seconds(vector.tobytes),
        "add": sites * vector.size / _median_seconds(add),
        "decrypt": vector.size / _median_seconds(lambda: (total / sites).astype(np.float32)),
    }


def _add_all(params: SuiteParams, uploads: Iterable[list[bytes]], length: int) -> list[bytes]:
    columns = zip(*uploads, strict=True)
    with suite(params.suite).chunk_adder(params) as adder:
        return [adder.add(chunks, index, length) for index, chunks in enumerate(columns)]


def measure(suite_name: str, set_name: str, length: int, sites: int, report: Report) -> None:
    """One suite, one size, one cohort. Raises VerificationError if the opened sum is wrong."""
    params = suite(suite_name).parameters(set_name)
    side = study_key_side(suite_name)
    generator = np.random.default_rng(length)  # the benchmark's data, not a key
    vector = generator.normal(0, 0.05, length).clip(-params.bound, params.bound).astype(np.float32)
    plain = _plain_rates(vector, sites)
    label = f"{suite_name}:{set_name}"

    def emit(figure: str, value: float, unit: str, baseline: float | None) -> None:
        report(Record(figure, value, unit, label, length, sites, 1, "cpu", baseline))

    key = side.generate_key(params)
    with side.cipher(key, b"") as cipher:
        upload = list(cipher.encrypt(vector))  # also starts the worker: not timed
        emit(
            "encrypt",
            length / _median_seconds(lambda: [None for _ in cipher.encrypt(vector)]),
            "params/s",
            plain["encrypt"],
        )
        # Fresh ciphertexts for every site: an adder refuses the same one twice.
        uploads = [upload, *(list(cipher.encrypt(vector)) for _ in range(sites - 1))]
        start = time.perf_counter()
        total = _add_all(params, uploads, length)
        emit("add", sites * length / (time.perf_counter() - start), "params/s", plain["add"])
        opened = cipher.open_sum(total, length, sites)
        emit(
            "decrypt",
            length / _median_seconds(lambda: cipher.open_sum(total, length, sites)),
            "params/s",
            plain["decrypt"],
        )
        error = float(np.abs(opened - sites * vector.astype(np.float64)).max())
        bound = params.error_bound(sites)
        if error > bound:
            raise VerificationError(f"the opened sum is off by {error:.3g}", why=f"the bound is {bound:.3g}")
        emit("largest_error", error, "absolute", bound)
        emit("bytes_up", sum(map(len, upload)) / length, "B/param", 4.0)
        emit("bytes_down", sum(map(len, total)) / length, "B/param", 4.0)
        emit("key_bytes", len(key.reveal()), "B", None)
        with PeakMemory(os.getpid()) as memory:
            for _ in cipher.encrypt(vector):
                pass
        emit("peak_memory", memory.extra / 1e6, "MB", None)


def run(lengths: list[int], cohorts: list[int], report: Report) -> None:
    """All suites and parameter sets at each size and cohort."""
    for name in sorted(PACKAGES):
        for set_name in suite(name).parameter_sets:
            for length in lengths:
                for sites in cohorts:
                    measure(name, set_name, length, sites, report)
