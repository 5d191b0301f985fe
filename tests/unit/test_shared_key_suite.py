"""The suite end to end, through its worker processes."""

import copy
import os
import pickle
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cipherward.crypto.labels import Label, digest
from cipherward.crypto.shared_key.chunks import Upload, pack_upload, parse_sum, parse_upload
from cipherward.crypto.shared_key.keys import SharedSecretKey
from cipherward.crypto.shared_key.params import FLARE_8192, PARAMETER_SETS, SEAL_4096_48
from cipherward.crypto.suites.payload import Layout, build, split
from cipherward.crypto.suites.registry import suite
from cipherward.crypto.suites.site_side import site_side
from cipherward.errors import FormatError, LimitError, UnavailableError, UsageError, VerificationError

SUITE, SITE = suite("shared-key"), site_side("shared-key")
P = SEAL_4096_48


@pytest.fixture(scope="module", params=PARAMETER_SETS.values(), ids=list(PARAMETER_SETS))
def world(request):
    params = request.param
    key = SITE.generate_key(params)
    with SITE.cipher(key, b"") as cipher, SUITE.chunk_adder(params) as adder:
        yield params, key, cipher, adder


@pytest.fixture(scope="module")
def small():
    key = SITE.generate_key(P)
    with SITE.cipher(key, b"") as cipher, SUITE.chunk_adder(P) as adder:
        yield key, cipher, adder


def add_all(adder, uploads, length):
    return [adder.add((up[i] for up in uploads), i, length) for i in range(len(uploads[0]))]


def synthetic(count, seed=0):
    """Structurally valid uploads of one ciphertext that no site encrypted."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        c0 = rng.integers(0, P.moduli[0], (1, P.degree), dtype=np.uint64)
        yield pack_upload(P, [Upload(c0, rng.bytes(64))], 0)


@pytest.mark.parametrize("contributors", [1, 2, 7])
def test_the_opened_sum_is_the_sum_within_the_predicted_error(world, contributors):
    params, _, cipher, adder = world
    rng = np.random.default_rng(contributors)
    length = params.values_per_chunk + params.values_per_ciphertext + 3
    plain = [rng.uniform(-params.bound, params.bound, length).astype(np.float32) for _ in range(contributors)]
    uploads = [list(cipher.encrypt(vector)) for vector in plain]
    for chunks in uploads:
        for index, chunk in enumerate(chunks):
            params.check_upload_chunk(chunk, index, length)
    total = add_all(adder, uploads, length)
    opened = cipher.open_sum(total, length, contributors)
    error = np.abs(opened - np.sum(np.array(plain, dtype=np.float64), axis=0))
    assert opened.dtype == np.float64
    assert opened.shape == (length,)
    # A bound nobody comes near would be as wrong as one that is exceeded: 20,000 Gaussians reach 4 sigma
    # of the 10 that the bound allows.
    bound = params.error_bound(contributors)
    assert 0.3 * bound < error.max() <= bound


def test_noise_has_the_deviation_that_the_bound_assumes(small):
    _, cipher, adder = small
    length = 5 * P.values_per_ciphertext
    vector = np.random.default_rng(0).uniform(-1, 1, length)
    opened = cipher.open_sum(add_all(adder, [list(cipher.encrypt(vector))], length), length, 1)
    # 10.5 from the centred binomial, 1/12 from rounding: 20,480 samples, so 5 standard errors are 2.5 %.
    predicted = np.sqrt(P.degree / 2 * (10.5 + 1 / 12)) / P.scale
    assert np.std(opened - vector) == pytest.approx(predicted, rel=0.025)


def test_the_extreme_sum_of_many_sites_does_not_wrap(small):
    _, cipher, adder = small
    length, contributors = 40, 300
    vector = np.full(length, P.bound) * np.where(np.arange(length) < 20, 1, -1)
    constant = np.full(P.values_per_ciphertext, -P.bound)
    for values in (vector, constant):
        uploads = (next(cipher.encrypt(values)) for _ in range(contributors))
        opened = cipher.open_sum([adder.add(uploads, 0, values.size)], values.size, contributors)
        assert np.abs(opened - contributors * values).max() <= P.error_bound(contributors)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_vectors_add_up(small, data):
    _, cipher, adder = small
    length = data.draw(st.integers(1, 40))
    values = st.floats(-P.bound, P.bound)
    plain = [
        np.array(data.draw(st.lists(values, min_size=length, max_size=length)))
        for _ in range(data.draw(st.integers(1, 4)))
    ]
    total = add_all(adder, [list(cipher.encrypt(vector)) for vector in plain], length)
    opened = cipher.open_sum(total, length, len(plain))
    assert np.abs(opened - sum(plain)).max() <= P.error_bound(len(plain))


def test_sums_are_deterministic_and_encryption_is_not(small):
    _, cipher, adder = small
    vector = np.ones(10)
    uploads = [next(cipher.encrypt(vector)) for _ in range(3)]
    assert len(set(uploads)) == 3
    first = adder.add(uploads, 0, 10)
    adder.add(uploads[:2], 0, 10)
    assert adder.add(uploads, 0, 10) == first
    with SUITE.chunk_adder(P) as other:
        assert other.add(uploads, 0, 10) == first
        # Addition modulo a prime is exact, so here even the order does not matter.
        assert other.add(uploads[::-1], 0, 10) == first


def test_float32_and_strided_vectors_give_the_same(small):
    _, cipher, adder = small
    vector = np.arange(12, dtype=np.float32)[::2]
    opened = cipher.open_sum([adder.add(cipher.encrypt(vector), 0, 6)], 6, 1)
    assert np.abs(opened - [0, 2, 4, 6, 8, 10]).max() <= P.error_bound(1)


@pytest.mark.parametrize(
    ("vector", "error", "match"),
    [
        (np.array([1.0, np.nan]), LimitError, "1 of 2 values are not finite, the first at position 1"),
        (np.array([np.inf, np.nan]), LimitError, "2 of 2 values are not finite, the first at position 0"),
        (np.array([0.0, -64.1]), LimitError, "magnitude 64.1 exceeds the study's bound 64"),
        (np.array([], dtype=np.float32), LimitError, "cannot have 0 values"),
        (np.zeros((2, 2)), UsageError, "one-dimensional"),
        (np.zeros(2, dtype=np.int64), UsageError, "floating-point"),
    ],
)
def test_bad_vectors_are_refused_at_the_call(small, vector, error, match):
    with pytest.raises(error, match=match):
        small[1].encrypt(vector)


def test_the_studys_own_bound_is_kept(small):
    key = SITE.load_key(P.with_bound(2), small[0].reveal())
    with SITE.cipher(key, b"") as cipher, pytest.raises(LimitError, match="bound 2"):
        cipher.encrypt(np.array([2.5]))


def test_a_peers_upload_passed_off_as_the_sum_is_refused(small):
    _, cipher, adder = small
    layout = Layout(5, 1)
    updates = [build(layout, np.full(5, i, np.float32), [i], P.bound) for i in range(3)]
    uploads = [next(cipher.encrypt(update)) for update in updates]
    good = cipher.open_sum([adder.add(uploads, 0, layout.length)], layout.length, 3)
    assert split(layout, good, 3, P).update == pytest.approx([3.0] * 5, abs=1e-5)
    for picked in ([0], [1, 2]):
        forged = adder.add([uploads[i] for i in picked], 0, layout.length)
        opened = cipher.open_sum([forged], layout.length, 3)
        with pytest.raises(VerificationError, match="the opened sum is refused"):
            split(layout, opened, 3, P)


def test_a_raw_upload_is_not_even_a_sum(small):
    _, cipher, _ = small
    with pytest.raises(FormatError, match="kind"):
        cipher.open_sum([next(cipher.encrypt(np.ones(5)))], 5, 3)


def test_sums_of_another_number_of_chunks_are_refused(small):
    _, cipher, adder = small
    length = 2 * P.values_per_chunk
    total = add_all(adder, [list(cipher.encrypt(np.zeros(length)))], length)
    for chunks, match in ((total[:1], "1 chunks and must have 2"), ([*total, total[0]], "more than 2")):
        with pytest.raises(FormatError, match=match):
            cipher.open_sum(chunks, length, 1)
    with pytest.raises(FormatError, match="index"):
        cipher.open_sum([total[0], total[0]], length, 1)


def test_an_adder_needs_contributors_and_counts_them(small):
    adder = small[2]
    with pytest.raises(LimitError, match="no contributors"):
        adder.add([], 0, 10)
    tight = P.with_bound(40_000)
    with SUITE.chunk_adder(tight) as limited, pytest.raises(LimitError, match="room for 2"):
        limited.add(synthetic(3), 0, 10)


def test_the_same_ciphertext_twice_is_refused(small):
    chunk = next(synthetic(1))
    with pytest.raises(VerificationError, match="same seed"):
        small[2].add([chunk, chunk], 0, 10)


def test_memory_does_not_grow_with_contributors(small):
    adder = small[2]

    def peak():
        status = Path(f"/proc/{adder.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0])

    adder.add(synthetic(20), 0, 10)
    before = peak()
    adder.add(synthetic(400), 0, 10)
    # 400 contributors' chunks are 9.6 MiB (26 MiB in SEAL's form).
    assert peak() - before < 512


def test_a_killed_adder_fails_the_sum_and_serves_the_next(small):
    adder = small[2]
    chunks = list(synthetic(3))

    def killing():
        yield chunks[0]
        os.kill(adder.pid, signal.SIGKILL)
        yield chunks[1]
        yield chunks[2]

    expected = adder.add(chunks, 0, 10)
    with pytest.raises(UnavailableError, match="adding chunk 0 of contributor 2"):
        adder.add(killing(), 0, 10)
    assert adder.add(chunks, 0, 10) == expected


def test_an_interrupted_sum_leaves_nothing_behind(small):
    adder = small[2]
    chunks = list(synthetic(3))
    expected = adder.add(chunks[1:], 0, 10)
    with pytest.raises(FormatError):
        adder.add([chunks[0], b"rubbish"], 0, 10)
    assert adder.add(chunks[1:], 0, 10) == expected


def test_a_killed_cipher_gets_its_key_again(small):
    _, cipher, adder = small
    chunks = cipher.encrypt(np.full(P.values_per_chunk + 2, 3.0))
    uploads = [next(chunks)]
    os.kill(cipher.pid, signal.SIGKILL)
    while cipher.pid is not None:
        time.sleep(0.001)
    uploads += chunks
    length = P.values_per_chunk + 2
    opened = cipher.open_sum(add_all(adder, [uploads], length), length, 1)
    assert opened == pytest.approx(3.0, abs=P.error_bound(1))


def test_a_key_travels_by_pipe_only(small):
    key, cipher, _ = small
    next(cipher.encrypt(np.zeros(1)))  # the process starts at its first request
    process = Path(f"/proc/{cipher.pid}")
    secret = key.reveal()[16:]
    for name in ("cmdline", "environ"):
        content = (process / name).read_bytes()
        assert len(content) < 4096
        assert secret[:16] not in content
        assert secret[:16].hex().encode() not in content
    files = [str(fd.readlink()) for fd in (process / "fd").iterdir()]
    assert all(f.startswith(("pipe:", "/memfd:seal", "/dev/null")) for f in files)


def test_a_key_has_no_repr_and_does_not_pickle_or_copy(small):
    key = small[0]
    content = key.reveal()
    for text in (repr(key), str(key), f"{key}", repr(vars(type(key)))):
        assert content[20:24].hex() not in text
        assert repr(content[20:28])[2:-1] not in text
    assert repr(key) == "<shared key of seal-4096-48, content omitted>"
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="does not pickle"):
            attempt(key)
    assert not hasattr(key, "__dict__")


def test_a_keys_digest_depends_on_key_and_manifest(small):
    key = small[0]
    assert key.digest(b"manifest") == digest(
        Label.SHARED_KEY_DIGEST, b"manifest", b"seal-4096-48", key.reveal()
    )
    assert key.digest(b"manifest") != key.digest(b"other")
    other = SITE.generate_key(P)
    assert other.digest(b"manifest") != key.digest(b"manifest")
    assert SITE.load_key(P, key.reveal()).digest(b"manifest") == key.digest(b"manifest")


def test_bytes_that_are_no_key_are_refused(small):
    content = small[0].reveal()
    q = P.moduli[0].to_bytes(6, "little")
    cases = {
        "too few": b"",
        "must have": content[:-1],
        "magic": b"\0" * len(content),
        "parameter set": content[:5] + b"\x02" + content[6:],
        "residue 0": content[:16] + q + content[22:],
        "it is zero": content[:16] + bytes(len(content) - 16),
    }
    for why, bad in cases.items():
        with pytest.raises(FormatError, match=why):
            SharedSecretKey(P, bad)
    with pytest.raises(FormatError, match="parameter set"):
        SITE.load_key(FLARE_8192, content)


def test_another_key_opens_nothing(small):
    _, cipher, adder = small
    total = [adder.add(cipher.encrypt(np.zeros(8)), 0, 8)]
    with SITE.cipher(SITE.generate_key(P), b"") as stranger:
        assert np.abs(stranger.open_sum(total, 8, 1)).min() > 1


def test_our_c1_is_what_seal_expands_from_the_seed(small):
    """The seed decides c1: two uploads with one c0 and seeds s, s' differ in the sum in c1 only."""
    adder = small[2]
    one, two = synthetic(2)
    swapped = one[:-64] + two[-64:]
    first = parse_sum(P, adder.add([one], 0, 10), 0, 10)[0]
    second = parse_sum(P, adder.add([swapped], 0, 10), 0, 10)[0]
    assert (first.c0 == second.c0).all()
    assert (first.c0 == parse_upload(P, one, 0, 10)[0].c0).all()
    assert (first.c1 != second.c1).mean() > 0.99
