"""The crypto benchmark of suites with a key for each attempt, shared t of n: every site of the cohort deals, every
member answers, and the sum is opened with the key that the answers add up to."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from cipherward.crypto.manifest_rules import least_threshold
from cipherward.crypto.quorum.sealed import Answering, Dealing
from cipherward.crypto.sealing import SealingKey
from cipherward.crypto.suites.base import OneTimeKey, SecretKey
from cipherward.crypto.suites.registry import suite
from cipherward.crypto.suites.site_side import one_time_key_side
from cipherward.evaluation.bench.crypto import REPEATS, Case, median_seconds
from cipherward.evaluation.bench.encrypt_memory import encrypt_memory

WINDOW_BYTES = 256 * 2**20
"""Of uploads held at a time to be added up: all sites' would not fit the memory. A coordinator reads each chunk
once, too."""


class _Round:
    """The cohort's keys and records' digests, made up for the benchmark; the crypto is the real one."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.side = one_time_key_side(case.params.suite)
        self.context = os.urandom(32)
        self.threshold = least_threshold(case.sites)
        self.members = tuple(f"site-{number}" for number in range(1, case.sites + 1))
        self.round_keys = [SealingKey.generate() for _ in self.members]
        self.public = [key.public() for key in self.round_keys]

    def fresh_key(self) -> OneTimeKey:
        return self.side.generate_key(self.case.params, os.urandom(32))

    def encrypt(self, key: OneTimeKey, threads: int | None = 1) -> Iterator[bytes]:
        with self.side.cipher(key, self.context, threads) as cipher:
            yield from cipher.encrypt(self.case.vector)

    def dealing(self, dealer: str) -> Dealing:
        return Dealing(bytes(32), bytes(32), "bench", self.threshold, self.members, dealer, 1, bytes(32))

    def answering(self, member: str) -> Answering:
        return Answering(bytes(32), bytes(32), bytes(32), self.members, member)


def measure_attempt(case: Case) -> None:
    """Encrypt in one and two threads, add, decrypt, share, open; bytes; memory."""
    work = _Round(case)
    for threads in (1, 2):
        # A fresh key each time: it encrypts once.
        seconds = median_seconds(lambda: [None for _ in work.encrypt(work.fresh_key(), threads)])  # noqa: B023
        case.rate("encrypt", seconds, case.length, threads)
    keys = [work.fresh_key() for _ in work.members]
    total, bytes_up = _add(work, keys)
    sum_key, key_bytes = _share_and_open(work, keys)
    with work.side.cipher(sum_key, work.context, 1) as cipher:
        opened = cipher.open_sum(total, case.length, case.sites)
        seconds = median_seconds(lambda: cipher.open_sum(total, case.length, case.sites))
    case.rate("decrypt", seconds, case.length)
    case.check(opened)
    case.emit("bytes_up", (bytes_up + key_bytes) / case.length, "B/param", 4.0)
    case.emit("bytes_down", sum(map(len, total)) / case.length, "B/param", 4.0)
    case.emit("key_bytes", key_bytes, "B")
    case.emit("peak_memory", encrypt_memory(case.params, case.length, case.sites) / 1e6, "MB")


def _add(work: _Round, keys: list[OneTimeKey]) -> tuple[list[bytes], int]:
    """The sum of all sites' updates, and the bytes of one. The adder is timed on as many first chunks of all
    sites as fit the window."""
    case = work.case
    sizes = [
        case.params.upload_chunk_bytes(index, case.length)
        for index in range(case.params.chunk_count(case.length))
    ]
    window = max(1, WINDOW_BYTES // (case.sites * max(sizes)))
    held: list[list[bytes]] = [[] for _ in sizes[:window]]
    total: list[bytes] = []
    with suite(case.params.suite).chunk_adder(case.params) as adder:
        for position, key in enumerate(keys):
            for index, chunk in enumerate(work.encrypt(key, None)):
                if index < window:
                    held[index].append(chunk)
                if position == 0:
                    total.append(chunk)
                else:
                    total[index] = adder.add([total[index], chunk], index, case.length)

        def add_window() -> None:
            for index, chunks in enumerate(held):
                adder.add(chunks, index, case.length)

        seconds = median_seconds(add_window)
    values = min(case.length, sum(sizes[:window]) * case.length // sum(sizes))
    case.rate("add", seconds, case.sites * values)
    return total, sum(sizes)


def _share_and_open(work: _Round, keys: list[OneTimeKey]) -> tuple[SecretKey, int]:
    """The key of the sum, and the bytes of key material that one site sends in the round."""
    case, side = work.case, work.side
    dealt: list[list[bytes]] = []
    sealed_to_first: list[bytes] = []
    share_seconds: list[float] = []
    for dealer, key in zip(work.members, keys, strict=True):
        start = time.perf_counter()
        shares = key.deal(work.threshold, case.sites)
        if len(share_seconds) < REPEATS:
            sealed = work.dealing(dealer).seal(work.public, shares)
            share_seconds.append(time.perf_counter() - start)
        else:  # the rest only for the one member whose opening is timed
            sealed = work.dealing(dealer).seal(work.public[:1], shares[:1])
        dealt.append(shares)
        sealed_to_first.append(sealed[0])
    case.emit("share", sorted(share_seconds)[len(share_seconds) // 2], "s")
    key_bytes = case.sites * len(work.dealing("").seal(work.public[:1], dealt[0][:1])[0])

    answers = []
    for place, member in enumerate(work.members):
        vector = side.add_shares(case.params, [shares[place] for shares in dealt])
        answers.append(work.answering(member).seal(work.public, vector))
    encrypted, sealed_keys = answers[0]
    key_bytes += len(encrypted) + sum(map(len, sealed_keys))

    def one_member() -> SecretKey:
        """All that a member does to open: the shares dealt to it, its answer, and everybody's answers."""
        opened = [
            work.dealing(dealer).open(0, work.round_keys[0], sealed)
            for dealer, sealed in zip(work.members, sealed_to_first, strict=True)
        ]
        work.answering(work.members[0]).seal(work.public, side.add_shares(case.params, opened))
        points = {
            place + 1: work.answering(member).open(0, work.round_keys[0], vector, keys[0])
            for place, (member, (vector, keys)) in enumerate(zip(work.members, answers, strict=True))
        }
        return next(side.combine(case.params, points, work.threshold, case.sites)).key

    case.emit("open", median_seconds(one_member), "s")
    return one_member(), key_bytes
