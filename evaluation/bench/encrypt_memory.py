"""Memory that encrypting takes, in a process of its own: one that has encrypted before keeps what it was given, and
would seem to need nothing.

``python -m cipherward.evaluation.bench.encrypt_memory SUITE SET LENGTH SITES`` prints bytes above the vector.
"""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np

from cipherward.crypto.suites.base import SuiteParams
from cipherward.crypto.suites.registry import suite
from cipherward.crypto.suites.site_side import one_time_key_side
from cipherward.errors import UnavailableError
from cipherward.evaluation.bench.memory import PeakMemory


def encrypt_memory(params: SuiteParams, length: int, sites: int) -> int:
    """Bytes; raises UnavailableError if the process failed."""
    arguments = [params.suite, params.name, str(length), str(sites)]
    done = subprocess.run(  # noqa: S603 - our own interpreter and module, no shell
        [sys.executable, "-m", __spec__.name, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UnavailableError("the memory could not be measured", why=done.stderr.strip()[-200:])
    return int(done.stdout)


def _main(suite_name: str, set_name: str, length: int, sites: int) -> int:
    side, params = one_time_key_side(suite_name), suite(suite_name).parameters(set_name, None, sites)
    vector = np.zeros(length, dtype=np.float32)
    vector += np.float32(0.25)  # touched: its pages are there before the measurement begins
    key = side.generate_key(params, b"bench")
    with PeakMemory(os.getpid()) as memory, side.cipher(key, b"bench") as cipher:
        for _ in cipher.encrypt(vector):
            pass
    return memory.extra


if __name__ == "__main__":
    sys.stdout.write(f"{_main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))}\n")
