"""``cipherward bench crypto``: what encryption costs, beside the same steps on plain float32 in the same run.

Every step goes through the suites' own interface, workers and checks included: what is timed is what an agent
and a coordinator do, less the network. Sums are compared with the plain ones and the error bound.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cipherward.crypto.suites.base import KeyLifetime, SuiteParams
from cipherward.crypto.suites.registry import PACKAGES, suite
from cipherward.errors import UsageError, VerificationError
from cipherward.evaluation.bench.records import Record

Report = Callable[[Record], None]
Note = Callable[[str], None]
REPEATS = 3
PLAIN_SAMPLE = 4_000_000
"""Values that the plain steps are timed on: their rate does not depend on how many more follow."""
MOST_OF_SHARED_KEY = (10_000_000, 16)
"""Parameters and sites up to which one key for all sites is measured: it takes hours beyond."""


def median_seconds(step: Callable[[], object], repeats: int = REPEATS) -> float:
    """The median time of a few runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def plain_rates(vector: NDArray[np.float32], sites: int) -> dict[str, float]:
    """Parameters a second of the unencrypted equivalents: serialise, add up in float64, divide."""
    vector = vector[:PLAIN_SAMPLE]
    blob = vector.tobytes()
    total = np.zeros(vector.size)

    def add() -> None:
        for _ in range(sites):
            np.add(total, np.frombuffer(blob, dtype=np.float32), out=total)

    return {
        "encrypt": vector.size / median_seconds(vector.tobytes),
        "add": sites * vector.size / median_seconds(add),
        "decrypt": vector.size / median_seconds(lambda: (total / sites).astype(np.float32)),
    }


@dataclass(frozen=True)
class Case:
    """One suite, one size, one cohort."""

    params: SuiteParams
    vector: NDArray[np.float32]
    sites: int
    plain: dict[str, float]
    report: Report

    @property
    def length(self) -> int:
        """Parameters."""
        return self.vector.size

    def emit(
        self, figure: str, value: float, unit: str, baseline: float | None = None, threads: int = 1
    ) -> None:
        """Report a figure."""
        label = f"{self.params.suite}:{self.params.name}"
        self.report(Record(figure, value, unit, label, self.length, self.sites, threads, "cpu", baseline))

    def rate(self, figure: str, seconds: float, values: int, threads: int = 1) -> None:
        """Report a speed, beside the plain one."""
        self.emit(figure, values / seconds, "params/s", self.plain[figure], threads)

    def check(self, opened: NDArray[np.float64]) -> None:
        """Report the largest error; VerificationError if it exceeds the bound: wrong results would flatter."""
        error, bound, step = 0.0, self.params.error_bound(self.sites), 2**20
        for start in range(0, self.length, step):
            exact = self.sites * self.vector[start : start + step].astype(np.float64)
            error = max(error, float(np.abs(opened[start : start + step] - exact).max()))
        if error > bound:
            raise VerificationError(f"the opened sum is off by {error:.3g}", why=f"the bound is {bound:.3g}")
        self.emit("largest_error", error, "absolute", bound)


def measure(suite_name: str, set_name: str, length: int, sites: int, report: Report) -> None:
    """One suite, one size, one cohort. Raises VerificationError if the opened sum is wrong, UsageError for a
    set that is not for so many sites."""
    from cipherward.evaluation.bench.attempt_keys import measure_attempt
    from cipherward.evaluation.bench.study_keys import measure_study

    chosen = suite(suite_name)
    params = chosen.parameters(set_name, None, sites)
    generator = np.random.default_rng(length)  # the benchmark's data, not a key
    vector = generator.normal(0, 0.05, length).astype(np.float32)
    np.clip(vector, -params.bound, params.bound, out=vector)
    case = Case(params, vector, sites, plain_rates(vector, sites), report)
    (measure_study if chosen.key_lifetime is KeyLifetime.STUDY else measure_attempt)(case)


def run(lengths: list[int], cohorts: list[int], report: Report, note: Note) -> None:
    """All suites and parameter sets at each size and cohort; ``note`` says what is left out, and why."""
    for length in lengths:
        for sites in cohorts:
            for name in sorted(PACKAGES, reverse=True):  # shared-key first: others are compared with it
                beyond = length > MOST_OF_SHARED_KEY[0] or sites > MOST_OF_SHARED_KEY[1]
                if beyond and suite(name).key_lifetime is KeyLifetime.STUDY:
                    continue
                for set_name in suite(name).parameter_sets:
                    try:
                        measure(name, set_name, length, sites, report)
                    except UsageError as error:
                        note(f"{name}:{set_name} is not for {sites} sites: {error.what}")
