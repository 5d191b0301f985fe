"""The crypto benchmark of suites with one key for the whole study."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

from cipherward.crypto.suites.base import SuiteParams
from cipherward.crypto.suites.registry import suite
from cipherward.crypto.suites.site_side import study_key_side
from cipherward.evaluation.bench.crypto import Case, median_seconds
from cipherward.evaluation.bench.memory import PeakMemory


def add_all(params: SuiteParams, uploads: Iterable[list[bytes]], length: int) -> list[bytes]:
    """The sum, chunk by chunk, by the suite's adder."""
    columns = zip(*uploads, strict=True)
    with suite(params.suite).chunk_adder(params) as adder:
        return [adder.add(chunks, index, length) for index, chunks in enumerate(columns)]


def measure_study(case: Case) -> None:
    """Encrypt, add, decrypt; bytes; memory."""
    params, length, sites = case.params, case.length, case.sites
    side = study_key_side(params.suite)
    key = side.generate_key(params)
    with side.cipher(key, b"") as cipher:
        upload = list(cipher.encrypt(case.vector))  # also starts the worker: not timed
        seconds = median_seconds(lambda: [None for _ in cipher.encrypt(case.vector)])
        case.rate("encrypt", seconds, length)
        # Fresh ciphertexts for every site: an adder refuses the same one twice.
        uploads = [upload, *(list(cipher.encrypt(case.vector)) for _ in range(sites - 1))]
        start = time.perf_counter()
        total = add_all(params, uploads, length)
        case.rate("add", time.perf_counter() - start, sites * length)
        opened = cipher.open_sum(total, length, sites)
        case.rate("decrypt", median_seconds(lambda: cipher.open_sum(total, length, sites)), length)
        case.check(opened)
        case.emit("bytes_up", sum(map(len, upload)) / length, "B/param", 4.0)
        case.emit("bytes_down", sum(map(len, total)) / length, "B/param", 4.0)
        case.emit("key_bytes", len(key.reveal()), "B")
        with PeakMemory(os.getpid()) as memory:
            for _ in cipher.encrypt(case.vector):
                pass
        case.emit("peak_memory", memory.extra / 1e6, "MB")
