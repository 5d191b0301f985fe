"""One of our parameter sets, beside the peers. Runs in the project's own environment.

Only what the ratios need: a site's whole work for an upload, from the float32 vector to bytes on the wire. For a
suite with one-time keys that is: hash the update (it hedges the key), make the key, encrypt, hash every chunk for
the commit, share the key and seal the shares. Sums, opening and memory at large are `cipherward bench crypto`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import time
from collections.abc import Callable
from typing import cast

import numpy as np
from repetitions import Repetition, serve

from cipherward.crypto import merkle
from cipherward.crypto.manifest_rules import least_threshold
from cipherward.crypto.quorum.sealed import Answering, Dealing
from cipherward.crypto.sealing import SealingKey
from cipherward.crypto.shared_key.site import SharedKeyCipher
from cipherward.crypto.suites.base import KeyLifetime, SiteCipher
from cipherward.crypto.suites.registry import suite
from cipherward.crypto.suites.site_side import one_time_key_side, study_key_side
from cipherward.evaluation.bench.memory import PeakMemory


class OneTimeKeyUpload:
    """A suite with a key for each attempt; all members of the round exist as sealing keys."""

    def __init__(self, suite_name: str, set_name: str, parameters: int, sites: int) -> None:
        self._side = one_time_key_side(suite_name)
        self._params = suite(suite_name).parameters(set_name, None, sites)
        generator = np.random.default_rng(parameters)  # the benchmark's data, not a key
        self._update = generator.normal(0, 0.05, parameters).astype(np.float32)
        self._threshold = least_threshold(sites)
        self._members = tuple(f"site-{number}" for number in range(1, sites + 1))
        self._round_keys = [SealingKey.generate().public() for _ in self._members]
        self._context = os.urandom(32)

    def repeat(self, done: Repetition) -> None:
        """One upload."""
        digests = (bytes(32), bytes(32))
        with done.timed("encrypt"):
            hedge = hashlib.sha256(self._update.data).digest()
            with done.timed("encrypt_only"):
                key = self._side.generate_key(self._params, hedge)
            with self._side.cipher(key, self._context, 1) as cipher:
                leaves = _stream(cipher, self._update, done)
            with done.timed("share"):
                dealing = Dealing(
                    *digests,
                    "bench",
                    self._threshold,
                    self._members,
                    self._members[0],
                    1,
                    merkle.root(leaves),
                )
                shares = key.deal(self._threshold, len(self._members))
                sealed = dealing.seal(self._round_keys, shares)
        # The answer after the close is sent up as well.
        answering = Answering(*digests, bytes(32), self._members, self._members[0])
        vector, keys = answering.seal(self._round_keys, self._side.add_shares(self._params, shares))
        done.bytes["up"] += sum(map(len, sealed)) + len(vector) + sum(map(len, keys))


class StudyKeyUpload:
    """A suite with one key for the whole study."""

    def __init__(self, suite_name: str, set_name: str, parameters: int, sites: int) -> None:
        params = suite(suite_name).parameters(set_name, None, sites)
        side = study_key_side(suite_name)
        generator = np.random.default_rng(parameters)  # the benchmark's data, not a key
        self._update = generator.normal(0, 0.05, parameters).astype(np.float32)
        self._cipher = cast("SharedKeyCipher", side.cipher(side.generate_key(params), b"", 1))
        next(self._cipher.encrypt(self._update))  # starts the worker

    def repeat(self, done: Repetition) -> None:
        """One upload."""
        worker = self._cipher.pid
        if worker is not None:
            clock = process_clock(worker)
            done.clock = lambda: time.process_time() + time.clock_gettime(clock)
        with done.timed("encrypt"):
            _stream(self._cipher, self._update, done)


def process_clock(pid: int) -> int:
    """The clock of another process's processor time: clock_getcpuclockid(3), which Python lacks."""
    return (~pid << 3) | 2


def _stream(cipher: SiteCipher, update: np.ndarray, done: Repetition) -> list[bytes]:
    """Encrypt chunk by chunk, hash each, keep none: as an agent does that writes them to its outbox."""
    leaves: list[bytes] = []
    sent = 0

    def stream() -> None:
        nonlocal sent
        chunks = cipher.encrypt(update)
        while True:
            with done.timed("encrypt_only"):
                chunk = next(chunks, None)
            if chunk is None:
                return
            sent += len(chunk)
            leaves.append(merkle.leaf_hash(chunk))

    if done.measure_peaks:
        # Sampled over this process and its workers: nothing here holds the interpreter's lock for long.
        with PeakMemory(os.getpid()) as memory:
            stream()
        done.peaks["client"] = memory.extra
    else:
        stream()
    done.bytes["up"] = sent
    return leaves


def prepare(arguments: argparse.Namespace) -> Callable[[Repetition], None]:
    """Our side of ``serve``."""
    kind = StudyKeyUpload if suite(arguments.suite).key_lifetime is KeyLifetime.STUDY else OneTimeKeyUpload
    return kind(arguments.suite, arguments.set, arguments.parameters, arguments.sites).repeat


if __name__ == "__main__":
    serve(prepare, "--suite", "--set")
