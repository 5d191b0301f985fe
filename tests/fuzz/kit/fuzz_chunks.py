"""Chunks, keys and shares of both suites, and what is sealed: by the code that checks, adds up and opens them."""

from __future__ import annotations

import struct
from random import Random

import numpy as np
from fuzz_mutate import Mutator, frames, in_frames, octets, sized, unframed
from fuzz_records import message, raw, void
from fuzz_target import TENSEAL_BOMB, target
from fuzz_world import LENGTH, PARAMETERS, SITES, consortium, sealing_key, study

from cipherward.crypto.labels import Label
from cipherward.crypto.quorum import shamir
from cipherward.crypto.shared_key.keys import SharedSecretKey
from cipherward.crypto.shared_key.seal_file import SealFormat
from cipherward.crypto.suites.payload import Layout, split
from cipherward.crypto.suites.registry import suite
from cipherward.crypto.suites.site_side import one_time_key_side
from cipherward.errors import FormatError
from cipherward.proto.v1 import coordinator_pb2 as cp
from cipherward.proto.v1 import round_pb2 as rp
from cipherward.site_agent.daemon.relay import open_item

SETS = {"q32": 20, "q16": 20, "seal-4096-48": 20, "flare-8192": 4}
"""By weight: the last one's chunks have 213 KB."""


def words(data: bytes, rng: Random) -> bytes:
    """Chunks are rows of residues: one of them made large, or the header changed."""
    if len(data) < 32 or rng.random() < 0.2:
        return sized(data, rng) if rng.random() < 0.3 else octets(data, rng)
    changed = bytearray(data)
    how = rng.randrange(5)
    if how == 0:
        changed[rng.randrange(20)] ^= 1 << rng.randrange(8)
    elif how == 1:
        size = rng.choice((2, 4, 5, 6, 8))
        at = rng.randrange(0, len(data) - size)
        changed[at : at + size] = rng.choice((b"\xff" * 8, b"\x00" * 8, struct.pack("<Q", 2**31 - 1)))[:size]
    elif how == 2:
        at = rng.randrange(len(data))
        changed[at] = rng.randrange(256)
    elif how == 3:
        at, end = sorted((rng.randrange(len(data)), rng.randrange(len(data))))
        changed[at:end] = bytes(end - at)
    else:
        return bytes(data) if rng.random() < 0.3 else TENSEAL_BOMB + bytes(data[len(TENSEAL_BOMB) :])
    return bytes(changed)


def _placed(seeds):
    """With the chunk's index before it, as requests name it."""
    return [index.to_bytes(4, "big") + chunk for index, chunk in seeds]


def _chunk_targets(name, weight):
    @target(f"chunk {name} upload", covers=[f"chunk {name} upload"], weight=weight)
    def upload():
        s = study(name)

        def run(data):
            s.params.check_upload_chunk(data[4:], int.from_bytes(data[:4], "big"), LENGTH)

        return run, _placed((i, one) for site in SITES for i, one in enumerate(s.chunks[site])), words

    @target(f"chunk {name} sum", covers=[f"chunk {name} sum"], weight=weight)
    def total():
        s = study(name)

        def run(data):
            s.params.check_sum_chunk(data[4:], int.from_bytes(data[:4], "big"), LENGTH)

        return run, _placed(enumerate(s.sum)), words


for _name, _weight in SETS.items():
    _chunk_targets(_name, _weight)


def _quorum(name):
    @target(f"chunk {name} added and opened", covers=[f"chunk {name} upload", f"chunk {name} sum"], weight=4)
    def make():
        """An update is added to a good one, and the sum opened with the right key: garbage, or refused."""
        s = study(name)
        side = one_time_key_side("quorum")
        answers = {place + 1: s.vectors[site] for place, site in enumerate(SITES)}
        key = next(side.combine(s.params, answers, s.plan.threshold, len(SITES))).key
        good = [[s.chunks[site][i] for site in SITES[:3]] for i in range(2)]

        def run(data):
            chunks = unframed(data)
            with suite("quorum").chunk_adder(s.params) as adder:
                sums = [adder.add([*good[i], one], i, LENGTH) for i, one in enumerate(chunks[:2])]
            with side.cipher(key, s.context, threads=1) as cipher:
                opened = cipher.open_sum([*sums, *chunks[2:]], LENGTH, len(SITES))
            split(Layout(PARAMETERS, 3), opened, len(SITES), s.params)

        return run, [frames(s.chunks["dora"])], in_frames(words)


for _name in ("q32", "q16"):
    _quorum(_name)


@target("chunk share", covers=["share"], weight=10)
def _share():
    s, side = study("q32"), one_time_key_side("quorum")

    def run(data):
        side.add_shares(s.params, unframed(data))

    return run, [frames([s.shares[site][0] for site in SITES])], in_frames(words)


@target("chunk answers combined", covers=["share"], weight=3)
def _combined():
    s, side = study("q32"), one_time_key_side("quorum")

    def run(data):
        answers = dict(enumerate(unframed(data)[: len(SITES)], 1))
        # More points than can be decoded together cost many subsets: what that costs is bounded, and timed here.
        next(iter(side.combine(s.params, answers, s.plan.threshold, len(SITES))), None)

    seeds = [frames([s.vectors[site] for site in SITES]), frames([s.vectors[site] for site in SITES[:3]])]
    return run, seeds, in_frames(words)


@target("chunk parse_share", covers=["share"], weight=4)
def _parse_share():
    return lambda data: void(shamir.parse_share(data)), [study("q32").shares["anna"][0]], words


@target("key shared", covers=["chunk seal-4096-48 key", "chunk flare-8192 key"], weight=10)
def _shared_key():
    studies = [study(one) for one in ("seal-4096-48", "flare-8192")]

    def run(data):
        s = studies[len(data) > 40_000]
        SharedSecretKey(s.params, data).digest(b"")

    return run, [s.key.reveal() for s in studies], words


@target("sealed share", covers=["label SEAL_SHARE"], weight=5)
def _sealed_share():
    s = study("q32")
    seeds = [s.sealed["anna"][1]]
    return lambda data: void(s.dealing("anna").open(1, s.round_keys["bert"], data)), seeds, words


@target("sealed answer", covers=["label SEAL_ANSWER"], weight=5)
def _sealed_answer():
    s = study("q32")

    def run(data):
        encrypted, sealed, *_ = [*unframed(data), b"", b""]
        s.answering("anna").open(1, s.round_keys["bert"], encrypted, sealed)

    record = rp.Answer.FromString(s.answers["anna"].payload)
    return run, [frames([record.encrypted_vector, s.answer_keys["anna"][1]])], in_frames(words)


def _sealed_items(name, kind, label):
    @target(f"relay {label.name.lower()}", covers=[f"label {label.name}", "reply RelayMessage"], weight=8)
    def make():
        """What GetRelay streams, opened as a site opens it: the item signed by another site, then its body."""
        s = study(name)

        def run(data):
            messages = [message(cp.RelayMessage, one) for one in unframed(data)]
            received = open_item(
                messages,
                s.trust,
                sealing_key("bert"),
                receiver="bert",
                kind=kind,
                max_bytes=2**20,
                accept=lambda item: None,
            )
            if received is not None and kind == rp.RelayItem.KIND_SHARED_KEY:
                SharedSecretKey(s.params, received[1]).digest(s.trust.digest)

        seeds = [frames([raw(one) for one in s.relay(kind)])]
        return run, seeds, in_frames(Mutator(consortium().keys).of(cp.RelayMessage))


_sealed_items("seal-4096-48", rp.RelayItem.KIND_SHARED_KEY, Label.SEAL_SHARED_KEY)
_sealed_items("q32", rp.RelayItem.KIND_MODEL, Label.SEAL_MODEL)


@target("file of SEAL", covers=["SEAL"], weight=8)
def _seal_file():
    """What a worker's native code writes, were it fooled: zstd that expands, sizes that lie."""
    import zstandard

    form = SealFormat((4, 1), 64, 1, 1, 2.0**30, b"\x01" * 32, b"\x02" * 32)
    words_ = np.arange(64, dtype=np.uint64).reshape(1, 64)
    files = [form.write_seeded(words_, b"s" * 64), form.write_full(words_, words_), form.write_key(words_)]

    def squeezed(file):
        body = zstandard.ZstdCompressor().compress(file[16:])
        return file[:5] + b"\x02" + file[6:8] + (16 + len(body)).to_bytes(8, "little") + body

    def mutate(data, rng):
        changed = octets(data, rng)
        if rng.random() < 0.5:  # the size in the header put right again
            changed = (
                changed[:8].ljust(8, b"\x00")
                + len(changed[16:] + bytes(16)).to_bytes(8, "little")
                + changed[16:]
            )
        return squeezed(changed) if rng.random() < 0.2 and len(changed) > 16 else changed

    def run(data):
        if len(data) < 16:
            raise FormatError("SEAL writes more")
        for reader in (form.read_seeded, form.read_full, form.read_key):
            try:
                reader(data)
                return
            except FormatError as error:
                refused = error
        raise refused

    return run, [*files, *(squeezed(one) for one in files)], mutate
