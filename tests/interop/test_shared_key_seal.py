"""Microsoft SEAL and TenSEAL, used directly, read what we write and write what we read."""

import signal
import subprocess
import sys

import numpy as np
import pytest
import tenseal as ts
import tenseal.sealapi as seal

from cipherward.crypto.shared_key.chunks import Sum, Upload, key_bytes, pack_sum, pack_upload, parse_sum
from cipherward.crypto.shared_key.native import SealContext
from cipherward.crypto.shared_key.params import FLARE_8192, PARAMETER_SETS
from cipherward.crypto.shared_key.wire import HEADER_BYTES, Header, Kind, pack_polynomial, unpack_polynomial
from cipherward.crypto.suites.registry import suite
from cipherward.crypto.suites.site_side import site_side
from cipherward.errors import FormatError

SUITE, SITE = suite("shared-key"), site_side("shared-key")


@pytest.fixture(scope="module", params=PARAMETER_SETS.values(), ids=list(PARAMETER_SETS))
def world(request):
    params = request.param
    key = SITE.generate_key(params)
    with SITE.cipher(key, b"") as cipher, SUITE.chunk_adder(params) as adder:
        yield params, key, cipher, adder


def plain_seal(params):
    """A context made as SEAL's own examples make it: from bit sizes, not from our list of primes."""
    parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
    parameters.set_poly_modulus_degree(params.degree)
    bits = [q.bit_length() for q in params.key_moduli]
    parameters.set_coeff_modulus(seal.CoeffModulus.Create(params.degree, bits))
    return seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC128)


def loaded(native, context, file, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(file)
    native.load(context, str(path))
    return native


def saved(native, tmp_path):
    path = tmp_path / "file"
    path.unlink(missing_ok=True)
    native.save(str(path))
    return path.read_bytes()


def key_residues(key):
    params = key.params
    return unpack_polynomial(key.reveal() + bytes(8), HEADER_BYTES, params.degree, params.key_moduli, "key")


def test_seal_opens_our_sum_with_our_key(world, tmp_path):
    params, key, cipher, adder = world
    vectors = [np.random.default_rng(i).uniform(-1, 1, params.values_per_ciphertext) for i in range(3)]
    total = adder.add((next(cipher.encrypt(v)) for v in vectors), 0, params.values_per_ciphertext)
    (full,) = parse_sum(params, total, 0, params.values_per_ciphertext)

    files = SealContext(params).format
    context = plain_seal(params)
    secret = loaded(seal.SecretKey(), context, files.write_key(key_residues(key)), tmp_path)
    ciphertext = loaded(seal.Ciphertext(), context, files.write_full(full.c0, full.c1), tmp_path)
    plain = seal.Plaintext()
    seal.Decryptor(context, secret).decrypt(ciphertext, plain)
    slots = np.array(seal.CKKSEncoder(context).decode_complex(plain))
    opened = slots.view(np.float64) if params.values_per_slot == 2 else slots.real
    assert np.abs(opened - sum(vectors)).max() <= params.error_bound(3)


def test_we_open_what_seal_encrypts(world, tmp_path):
    """Two ciphertexts of SEAL's, one seeded and one in full, with SEAL's own public-key-free encryptor."""
    params, key, cipher, adder = world
    files = SealContext(params).format
    context = plain_seal(params)
    secret = loaded(seal.SecretKey(), context, files.write_key(key_residues(key)), tmp_path)
    encryptor, plain = seal.Encryptor(context, secret), seal.Plaintext()
    length = params.values_per_ciphertext
    values = np.random.default_rng(5).uniform(-1, 1, length)
    slots = values.view(np.complex128) if params.values_per_slot == 2 else values
    seal.CKKSEncoder(context).encode(slots.tolist(), params.scale, plain)

    seeded = Upload(*files.read_seeded(saved(encryptor.encrypt_symmetric(plain), tmp_path)))
    total = adder.add([pack_upload(params, [seeded], 0)], 0, length)
    assert np.abs(cipher.open_sum([total], length, 1) - values).max() <= params.error_bound(1)

    native = seal.Ciphertext()
    encryptor.encrypt_symmetric(plain, native)
    full = pack_sum(params, [Sum(*files.read_full(saved(native, tmp_path)))], 0)
    assert np.abs(cipher.open_sum([full], length, 1) - values).max() <= params.error_bound(1)


def fields(message):
    """(number, value) of a protobuf message's fields."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            octet = message[at]
            at += 1
            value |= (octet & 127) << shift
            shift += 7
            if octet < 128:
                return value

    while at < len(message):
        tag = varint()
        size = {1: 8, 5: 4}.get(tag & 7)
        if tag & 7 == 0:
            yield tag >> 3, varint()
            continue
        size = varint() if size is None else size
        yield tag >> 3, message[at : at + size]
        at += size


def field(number, content):
    head, size = bytearray([number << 3 | 2]), len(content)
    while size > 127:
        head.append(size & 127 | 128)
        size >>= 7
    return bytes(head) + bytes([size]) + content


def tenseal_context():
    context = ts.context(
        ts.SCHEME_TYPE.CKKS, 8192, -1, [60, 40, 40], encryption_type=ts.ENCRYPTION_TYPE.SYMMETRIC
    )
    context.global_scale = 2.0**40
    return context


def our_key_from(context):
    """TenSEAL's secret key as ours: field 1 of field 3 of its serialised context, a file of SEAL's."""
    message = dict(fields(context.serialize(save_secret_key=True, save_galois_keys=False)))
    file = dict(fields(message[3]))[1]
    residues = SealContext(FLARE_8192).format.read_key(file)
    content = Header(FLARE_8192.set_id, Kind.KEY, 1, 0).pack() + pack_polynomial(
        residues, FLARE_8192.key_moduli
    )
    assert len(content) == key_bytes(FLARE_8192)
    return SITE.load_key(FLARE_8192, content)


def test_tenseal_vectors_as_nvidia_flare_sends_them_both_ways():
    params, context = FLARE_8192, tenseal_context()
    files, length = SealContext(params).format, 4096
    values = np.random.default_rng(7).uniform(-1, 1, length)
    with SITE.cipher(our_key_from(context), b"") as cipher, SUITE.chunk_adder(params) as adder:
        vector = dict(fields(ts.ckks_vector(context, values.tolist()).serialize()))
        theirs = pack_sum(params, [Sum(*files.read_full(vector[2]))], 0)
        assert np.abs(cipher.open_sum([theirs], length, 1) - values).max() <= params.error_bound(1)

        total = adder.add([next(cipher.encrypt(values)) for _ in range(3)], 0, length)
        (full,) = parse_sum(params, total, 0, length)
        sizes = field(1, b"\x80\x20")  # packed varint 4096
        scale = b"\x19" + np.float64(params.scale).tobytes()
        message = sizes + field(2, files.write_full(full.c0, full.c1)) + scale
        opened = ts.ckks_vector_from(context, message).decrypt()
        assert np.abs(np.array(opened) - 3 * values).max() <= params.error_bound(3)


def test_our_pinned_primes_are_those_that_seal_creates():
    for params in PARAMETER_SETS.values():
        bits = [q.bit_length() for q in params.key_moduli]
        created = seal.CoeffModulus.Create(params.degree, bits)
        assert tuple(q.value() for q in created) == params.key_moduli
        assert sum(bits) <= seal.CoeffModulus.MaxBitCount(params.degree, seal.SEC_LEVEL_TYPE.TC128)
        assert plain_seal(params).parameters_set()


def test_the_13_byte_blob_that_crashes_tenseals_parser_is_refused_by_ours():
    """A vector that claims 2,048 values and brings no ciphertext: adding it to a real one is a segfault."""
    blob = bytes.fromhex("0a028010190000000000007042")
    program = (
        "import tenseal as ts\n"
        "context = ts.context(ts.SCHEME_TYPE.CKKS, 8192, -1, [60, 40, 40])\n"
        "context.global_scale = 2.0**40\n"
        f"blob = bytes.fromhex({blob.hex()!r})\n"
        "ts.ckks_vector(context, [1.0] * 2048) + ts.ckks_vector_from(context, blob)\n"
    )
    control = subprocess.run([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    assert control.returncode == -signal.SIGSEGV, "the attack no longer works: is the check still tested?"
    for params in PARAMETER_SETS.values():
        with SUITE.chunk_adder(params) as adder:
            with pytest.raises(FormatError, match="too few for a header"):
                adder.add([blob], 0, 10)
            assert adder.pid is not None
