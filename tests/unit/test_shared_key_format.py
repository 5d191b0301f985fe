"""Parameter sets and the structure of chunks: all of it without native code."""

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cipherward.crypto.shared_key.chunks import Sum, Upload, pack_sum, pack_upload, parse_sum, parse_upload
from cipherward.crypto.shared_key.params import FLARE_8192, PARAMETER_SETS, SEAL_4096_48, SharedKeyParams
from cipherward.crypto.shared_key.wire import HEADER_BYTES, SEED_BYTES, pack_polynomial, unpack_polynomial
from cipherward.crypto.suites.registry import suite
from cipherward.crypto.suites.site_side import site_side
from cipherward.errors import FormatError, LimitError, UsageError

P = SEAL_4096_48
SETS = pytest.mark.parametrize("params", PARAMETER_SETS.values(), ids=list(PARAMETER_SETS))
LENGTH = P.values_per_chunk + 5000  # chunk 0 is full, chunk 1 has two ciphertexts


def residues(params: SharedKeyParams, rng: np.random.Generator) -> np.ndarray:
    return np.stack([rng.integers(0, q, params.degree, dtype=np.uint64) for q in params.moduli])


def upload_chunk(params: SharedKeyParams, index: int, length: int, seed: int = 1) -> bytes:
    rng = np.random.default_rng(seed)
    count = params.ciphertexts_in(index, length)
    return pack_upload(params, [Upload(residues(params, rng), rng.bytes(64)) for _ in range(count)], index)


def sum_chunk(params: SharedKeyParams, index: int, length: int) -> bytes:
    rng = np.random.default_rng(2)
    count = params.ciphertexts_in(index, length)
    return pack_sum(params, [Sum(residues(params, rng), residues(params, rng)) for _ in range(count)], index)


UPLOAD = upload_chunk(P, 1, LENGTH)
SUM = sum_chunk(P, 1, LENGTH)
C0 = 6 * 4096


def put(chunk: bytes, offset: int, content: bytes) -> bytes:
    return chunk[:offset] + content + chunk[offset + len(content) :]


# Each class of malformed upload, and what its refusal says.
BAD_UPLOADS = {
    "empty": (b"", "too few for a header"),
    "13-byte TenSEAL blob": (bytes.fromhex("0a028010190000000000007042"), "too few for a header"),
    "half a header": (UPLOAD[:8], "too few for a header"),
    "header only": (UPLOAD[:HEADER_BYTES], "must have"),
    "truncated": (UPLOAD[:-1], "must have"),
    "trailing byte": (UPLOAD + b"\0", "must have"),
    "one ciphertext too few": (UPLOAD[: -(C0 + SEED_BYTES)], "must have"),
    "SEAL's own file": (bytes.fromhex("5ea11004030200004b00000000000000") + UPLOAD[16:], "magic"),
    "plaintext in place of ciphertext": (np.ones(len(UPLOAD) // 4, "<f4").tobytes(), "magic"),
    "other version": (put(UPLOAD, 4, b"\x02"), "format version"),
    "other parameter set": (put(UPLOAD, 5, b"\x02"), "parameter set"),
    "sum in place of upload": (SUM, "kind"),
    "key in place of upload": (put(UPLOAD, 6, b"\x03"), "kind"),
    "no seed marker": (put(UPLOAD, 7, b"\x00"), "seed generator"),
    "wrong seed marker": (put(UPLOAD, 7, b"\x02"), "seed generator"),
    "wrong count": (put(UPLOAD, 8, b"\x03"), "count"),
    "huge count": (put(UPLOAD, 8, b"\xff\xff\xff\xff"), "count"),
    "another place in the vector": (put(UPLOAD, 12, b"\x00"), "index"),
    "residue equal to the modulus": (
        put(UPLOAD, HEADER_BYTES + 6 * 4095, P.moduli[0].to_bytes(6, "little")),
        "residue 4095 of prime 0",
    ),
    "residue above the modulus": (put(UPLOAD, HEADER_BYTES, b"\xff" * 6), "residue 0 of prime 0"),
    "zero seed": (put(UPLOAD, HEADER_BYTES + C0, bytes(SEED_BYTES)), "no seed"),
    "same seed twice": (
        put(UPLOAD, len(UPLOAD) - SEED_BYTES, UPLOAD[HEADER_BYTES + C0 :][:SEED_BYTES]),
        "repeats",
    ),
    "zero first polynomial": (put(UPLOAD, HEADER_BYTES, bytes(C0)), "first polynomial is zero"),
}
BAD_SUMS = {
    "empty": (b"", "too few for a header"),
    "truncated": (SUM[:-1], "must have"),
    "trailing byte": (SUM + b"\0", "must have"),
    "upload in place of sum": (UPLOAD, "kind"),
    "seed marker on a sum": (put(SUM, 7, b"\x01"), "seed generator"),
    "wrong count": (put(SUM, 8, b"\x01"), "count"),
    "another place in the vector": (put(SUM, 12, b"\x02"), "index"),
    "residue in c0": (put(SUM, HEADER_BYTES, b"\xff" * 6), "residue 0"),
    "residue in the last c1": (put(SUM, len(SUM) - 6, b"\xff" * 6), "residue 4095"),
    "transparent": (put(SUM, HEADER_BYTES + C0, bytes(C0)), "transparent"),
    "transparent last": (put(SUM, len(SUM) - C0, bytes(C0)), "transparent"),
}


@pytest.mark.parametrize("name", BAD_UPLOADS)
def test_every_class_of_malformed_upload_is_refused(name):
    chunk, why = BAD_UPLOADS[name]
    with pytest.raises(FormatError, match="upload chunk 1") as caught:
        P.check_upload_chunk(chunk, 1, LENGTH)
    assert why in caught.value.why


@pytest.mark.parametrize("name", BAD_SUMS)
def test_every_class_of_malformed_sum_is_refused(name):
    chunk, why = BAD_SUMS[name]
    with pytest.raises(FormatError, match="sum chunk 1") as caught:
        P.check_sum_chunk(chunk, 1, LENGTH)
    assert why in caught.value.why


@SETS
@pytest.mark.parametrize("index", [0, 1])
def test_valid_chunks_have_the_predicted_size_and_one_encoding(params, index):
    length = params.values_per_chunk + 1
    up, down = upload_chunk(params, index, length), sum_chunk(params, index, length)
    assert len(up) == params.upload_chunk_bytes(index, length)
    assert len(down) == params.sum_chunk_bytes(index, length)
    assert pack_upload(params, parse_upload(params, up, index, length), index) == up
    assert pack_sum(params, parse_sum(params, down, index, length), index) == down


@settings(max_examples=200, deadline=None)
@given(bit=st.integers(0, 8 * HEADER_BYTES - 1))
def test_any_flipped_bit_of_a_header_is_refused(bit):
    flipped = put(UPLOAD, bit // 8, bytes([UPLOAD[bit // 8] ^ 1 << bit % 8]))
    with pytest.raises(FormatError):
        P.check_upload_chunk(flipped, 1, LENGTH)


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=200), keep=st.integers(0, HEADER_BYTES))
def test_other_bytes_are_refused(content, keep):
    for check, valid in ((P.check_upload_chunk, UPLOAD), (P.check_sum_chunk, SUM)):
        with pytest.raises(FormatError):
            check(valid[:keep] + content, 1, LENGTH)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_residues_survive_packing_in_any_width(data):
    bits = data.draw(st.lists(st.integers(2, 61), min_size=1, max_size=3))
    primes = [2**b - 1 for b in bits]
    values = np.array(
        [data.draw(st.lists(st.integers(0, q - 1), min_size=8, max_size=8)) for q in primes], dtype=np.uint64
    )
    packed = pack_polynomial(values, primes)
    assert len(packed) == 8 * sum(math.ceil(b / 8) for b in bits)
    assert (unpack_polynomial(packed + bytes(8), 0, 8, primes, "x") == values).all()


@SETS
@given(length=st.integers(1, 2**32))
def test_chunks_cover_a_vector_exactly(params, length):
    count = params.chunk_count(length)
    assert params.values_in(count - 1, length) == length - (count - 1) * params.values_per_chunk
    assert params.values_in(0, length) == min(length, params.values_per_chunk)
    for index in (-1, count):
        with pytest.raises(LimitError):
            params.upload_chunk_bytes(index, length)


@pytest.mark.parametrize("length", [0, -1, 2**32 + 1])
def test_impossible_lengths_are_refused(length):
    with pytest.raises(LimitError):
        P.chunk_count(length)


@SETS
def test_chunks_fit_a_message_and_the_goal_for_bytes_holds(params):
    length = 1_000_000
    assert params.sum_chunk_bytes(0, length) <= 2**20
    up = sum(params.upload_chunk_bytes(i, length) for i in range(params.chunk_count(length)))
    assert up / length < (6.1 if params is P else 26.2)


@SETS
def test_moduli_are_prime_friendly_and_within_the_security_standard(params):
    # HomomorphicEncryption.org standard, table 1, ternary secret, 128 bits classical.
    limit = {4096: 109, 8192: 218}[params.degree]
    assert sum(q.bit_length() for q in params.key_moduli) <= limit
    assert all(q % (2 * params.degree) == 1 for q in params.key_moduli)
    assert "HomomorphicEncryption.org" in params.justification


@SETS
def test_the_worst_sum_of_all_sites_does_not_overflow(params):
    assert params.max_sites == 1000
    # A constant vector is the worst: its polynomial is one coefficient (two, if slots hold two values).
    largest = math.hypot(*[params.bound] * params.values_per_slot) * params.scale
    assert 1000 * (largest + 22) < math.prod(params.moduli) / 2


def test_a_bound_that_leaves_no_room_is_refused():
    assert P.with_bound(90).max_sites == 1000
    assert P.with_bound(1000).max_sites == 92
    P.with_bound(1000).check_sites(92)
    with pytest.raises(LimitError, match=r"bounded by 1000 does not fit.*room for 92.*at most 996\.6"):
        P.with_bound(1000).check_sites(93)
    with pytest.raises(LimitError, match="at most 1000"):
        P.check_sites(1001)
    with pytest.raises(UsageError, match=r"too large.*Use at most 4\.634e\+04"):
        P.with_bound(50_000)
    for bound in (0.5, -1, math.nan, math.inf):
        with pytest.raises(UsageError):
            P.with_bound(bound)


def test_only_named_sets_and_suites_exist():
    shared = suite("shared-key")
    assert set(shared.parameter_sets) == {"seal-4096-48", "flare-8192"}
    assert shared.parameters("flare-8192", 10).bound == 10
    with pytest.raises(UsageError, match="seal-4096-48"):
        shared.parameters("seal-2048")
    for find in (suite, site_side):
        with pytest.raises(UsageError, match="shared-key"):
            find("plain")


def test_error_bound_grows_with_the_root_of_contributors():
    assert P.error_bound(100) == pytest.approx(10 * P.error_bound(1), rel=1e-3)
    assert P.error_bound(1000) < 1e-4
    assert FLARE_8192.error_bound(1000) < 1e-7
    with pytest.raises(LimitError):
        P.error_bound(0)


def test_the_library_is_named_exactly():
    from importlib.metadata import version

    assert P.library == f"tenseal {version('tenseal')}"


def test_the_public_half_loads_neither_native_code_nor_keys():
    program = (
        "import sys\n"
        "from cipherward.crypto.suites.registry import suite\n"
        "s = suite('shared-key'); p = s.parameters('seal-4096-48'); s.chunk_adder(p).close(); p.library\n"
        "import cipherward.crypto.suites.payload\n"
        "bad = [m for m in sys.modules if m.startswith(('tenseal', '_tenseal', '_sealapi', 'torch'))\n"
        "       or m.startswith('cipherward') and m.endswith(('keys', '.site', 'site_side', 'native'))]\n"
        "sys.exit(repr(bad) if bad else 0)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
