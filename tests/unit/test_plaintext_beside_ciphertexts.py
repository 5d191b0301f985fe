"""A plaintext contribution beside ciphertexts, which NVIDIA FLARE 2.9.0 adds up (2026). It has the right form here, or
its form would be refused already: behind it no sum opens to anything that is believed."""

import numpy as np
import pytest

from cipherward.crypto.shared_key.wire import HEADER_BYTES
from cipherward.crypto.suites.payload import Layout, build, split
from cipherward.crypto.suites.registry import suite
from cipherward.crypto.suites.site_side import one_time_key_side, study_key_side
from cipherward.errors import FormatError, VerificationError

COUNT = 4
LAYOUT = Layout(5000, 3)
VECTORS = [
    build(LAYOUT, np.random.default_rng(seed).uniform(-1, 1, 5000).astype(np.float32), [0.5, 0.5, 1.0], 64.0)
    for seed in range(COUNT)
]


def plain(params, chunk, head):
    """float32 values as long as the chunk, behind its header; as residues where any residue is one."""
    values = np.resize(VECTORS[0], len(chunk) // 4 + 1)
    if not head:
        return (np.round(values[: len(chunk) // 4] * params.scale).astype(np.int64) % params.modulus).astype(
            "<u4"
        )
    return chunk[:head] + values.astype("<f4").tobytes()[: len(chunk) - head]


def total(params, uploads):
    with suite(params.suite).chunk_adder(params) as adder:
        columns = enumerate(zip(*uploads, strict=True))
        return [adder.add(list(column), index, LAYOUT.length) for index, column in columns]


@pytest.mark.parametrize("in_clear", [False, True])
def test_quorum(in_clear):
    side, params = one_time_key_side("quorum"), suite("quorum").parameters("q32", 64.0, COUNT)
    keys = [side.generate_key(params, b"%d" % site) for site in range(COUNT)]
    uploads = [list(side.cipher(key, b"").encrypt(vector)) for key, vector in zip(keys, VECTORS, strict=True)]
    if in_clear:
        uploads[0] = [plain(params, chunk, 0).tobytes() for chunk in uploads[0]]
    for index, chunk in enumerate(uploads[0]):
        params.check_upload_chunk(chunk, index, LAYOUT.length)
    shares = [key.deal(3, COUNT) for key in keys]
    answers = {place + 1: side.add_shares(params, [dealt[place] for dealt in shares]) for place in range(3)}
    key = next(side.combine(params, answers, 3, COUNT)).key
    with side.cipher(key, b"") as cipher:
        if in_clear:
            with pytest.raises(VerificationError, match="encodes zero"):
                cipher.open_sum(total(params, uploads), LAYOUT.length, COUNT)
        else:
            split(LAYOUT, cipher.open_sum(total(params, uploads), LAYOUT.length, COUNT), COUNT, params)


@pytest.mark.parametrize("in_clear", [False, True])
def test_shared_key(in_clear):
    side, params = study_key_side("shared-key"), suite("shared-key").parameters("seal-4096-48", 64.0)
    with side.cipher(side.generate_key(params), b"") as cipher:
        uploads = [list(cipher.encrypt(vector)) for vector in VECTORS]
        if not in_clear:
            split(LAYOUT, cipher.open_sum(total(params, uploads), LAYOUT.length, COUNT), COUNT, params)
            return
        whole = [np.float32(1).tobytes() * (len(chunk) // 4 + 1) for chunk in uploads[0]]
        for index, chunk in enumerate(uploads[0]):
            with pytest.raises(FormatError):  # not even the header of a ciphertext
                params.check_upload_chunk(whole[index][: len(chunk)], index, LAYOUT.length)
        uploads[0] = [plain(params, chunk, HEADER_BYTES) for chunk in uploads[0]]
        with pytest.raises((FormatError, VerificationError)):
            for index, chunk in enumerate(uploads[0]):
                params.check_upload_chunk(chunk, index, LAYOUT.length)
            split(LAYOUT, cipher.open_sum(total(params, uploads), LAYOUT.length, COUNT), COUNT, params)
