"""Known answers of the quorum suite's arithmetic, reached twice: by the suite, and from the description of the
format (``tests/vectors/quorum_v1/README.md``) in plain Python that shares no code with it."""

import hmac
import json
import math
import struct
from hashlib import sha256
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from cipherward.crypto.quorum.key import QuorumKey
from cipherward.crypto.quorum.params import DEGREE
from cipherward.crypto.quorum.sampling import PublicPolynomials
from cipherward.crypto.suites.registry import suite
from cipherward.crypto.suites.site_side import one_time_key_side

FOLDER = Path(__file__).parent.parent / "vectors" / "quorum_v1"
SETS = json.loads((FOLDER / "vectors.json").read_text())["sets"]
SUITE, SITE = suite("quorum"), one_time_key_side("quorum")


@pytest.fixture(params=SETS)
def known(request):
    return SETS[request.param] | {
        "set": request.param,
        "context": bytes.fromhex(SETS[request.param]["context"]),
    }


def material(upload):
    return bytes.fromhex(upload["randomness"]), bytes.fromhex(upload["hedge"])


def hexdigest(data):
    return sha256(data).hexdigest()


# By the suite.


def key_sha256(polynomial):
    return hexdigest(polynomial.astype("<i4").tobytes())


def test_parameters_and_public_polynomials(known):
    params = SUITE.parameters(known["set"], known["bound"], known["sites"])
    for name in ("modulus", "scale", "zero_elements"):
        assert getattr(params, name) == known[name]
    for chunk, expected in known["public"].items():
        words = np.empty((32, DEGREE), dtype=params.residue)
        source = PublicPolynomials(params, known["context"])
        found = source.take([int(chunk)], [0, 32], words, np.empty_like(words))
        assert found[0, :4].tolist() == expected["first"]
        assert found[-1, -4:].tolist() == expected["last"]
        assert hexdigest(found.tobytes()) == expected["sha256"]


def test_keys_shares_uploads_and_their_sum(known):
    params, length = SUITE.parameters(known["set"], known["bound"], known["sites"]), known["length"]
    vectors = [np.array(update(known, site)) for site in (1, 2, 3)]
    uploads, dealt = [], []
    for vector, expected in zip(vectors, known["uploads"], strict=True):
        polynomial, _ = QuorumKey(params, *material(expected)).spend(known["context"])
        assert polynomial[:8].tolist() == expected["key"]["first"]
        assert key_sha256(polynomial) == expected["key"]["sha256"]
        key = QuorumKey(params, *material(expected))
        dealt.append(key.deal(known["threshold"], known["members"]))
        uploads.append(list(SITE.cipher(key, known["context"]).encrypt(vector)))
        assert [hexdigest(share) for share in dealt[-1]] == expected["shares_sha256"]
        assert [hexdigest(chunk) for chunk in uploads[-1]] == expected["chunks_sha256"]
    assert b"".join(uploads[0]) == (FOLDER / f"{known['set']}-upload-1.bin").read_bytes()
    with SUITE.chunk_adder(params) as adder:
        total = [adder.add(chunks, i, length) for i, chunks in enumerate(zip(*uploads, strict=True))]
    assert b"".join(total) == (FOLDER / f"{known['set']}-sum.bin").read_bytes()

    answers = {j + 1: SITE.add_shares(params, [shares[j] for shares in dealt]) for j in (4, 2, 1, 0)}
    combined = next(SITE.combine(params, answers, known["threshold"], len(dealt)))
    assert combined.key.polynomial()[:8].tolist() == known["sum_key"]["first"]
    assert key_sha256(combined.key.polynomial()) == known["sum_key"]["sha256"]
    with SITE.cipher(combined.key, known["context"]) as cipher:
        opened = cipher.open_sum(total, length, len(dealt))
    units = (opened * params.scale).astype("<i4")
    assert (units / params.scale == opened).all()
    assert units[:8].tolist() == known["opened"]["first"]
    assert hexdigest(units.tobytes()) == known["opened"]["sha256"]
    assert np.abs(opened - sum(vectors)).max() <= params.error_bound(3)


# From the description, in plain Python.

N, P = 2048, 2**31 - 1


def update(known, site):
    """Update ``site``, from 1, as the README gives it."""
    return [known["bound"] * ((1009 * site * (j + 1)) % 2001 - 1000) / 1000 for j in range(known["length"])]


def framed(purpose, *parts):
    parts = (b"cipherward/v1/" + purpose, *parts)
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def hkdf(upload, purpose, *parts):
    """RFC 5869 with SHA-256, no salt, 32 bytes."""
    extracted = hmac.digest(bytes(32), b"".join(material(upload)), "sha256")
    return hmac.digest(extracted, framed(purpose, *parts) + b"\x01", "sha256")


def letter(known):
    """Of signed words as wide as a residue, in the notation of ``struct``."""
    return "i" if known["modulus"] > 2**16 else "h"


def words(key, block, kind):
    """Little-endian words of AES-256-CTR's keystream from a block on, for ever."""
    stream = Cipher(algorithms.AES(key), modes.CTR(block.to_bytes(16, "big"))).encryptor()
    while True:
        for (word,) in struct.iter_unpack("<" + kind, stream.update(bytes(1 << 14))):
            yield word


def public(known, chunk, elements):
    """Coefficients of a chunk's public polynomials, in folded order, centred."""
    q = known["modulus"]
    key = sha256(framed(b"public-polynomial", known["context"])).digest()
    spares = (w for w in words(key, (chunk << 32) + (1 << 31), letter(known)) if abs(w) <= (q - 1) // 2)
    candidates = islice(words(key, chunk << 32, letter(known)), elements * N)
    found = [w if abs(w) <= (q - 1) // 2 else next(spares) for w in candidates]
    return [found[start : start + N] for start in range(0, len(found), N)]


def coins(key, block, count):
    return [word.bit_count() - 32 for word in islice(words(key, block, "Q"), count)]


def natural(folded):
    return folded[0::2] + folded[1::2]


def product(a, s):
    """a s modulo X^N + 1, both and the result in folded order: as one product of two long integers."""
    number, other = (
        sum(value << (64 * j) for j, value in enumerate(natural(polynomial))) for polynomial in (a, s)
    )
    middle = sum(1 << (64 * j + 62) for j in range(2 * N))
    digits = struct.unpack(f"<{2 * N}Q", (number * other + middle).to_bytes(16 * N, "little"))
    full = [digit - 2**62 for digit in digits]
    reduced = [low - high for low, high in zip(full[:N], full[N:], strict=True)]
    return [value for pair in zip(reduced[: N // 2], reduced[N // 2 :], strict=True) for value in pair]


def secret(upload):
    return coins(hkdf(upload, b"attempt-key"), 0, N)


def encoded(known, site):
    """Chunks of whole elements; the last one encodes zero."""
    units = [round(known["scale"] * x) for x in update(known, site)]
    padded = units + [0] * (-len(units) % N)
    return [padded, [0] * N * known["zero_elements"]]


def encrypted(known, site):
    upload = known["uploads"][site - 1]
    s, errors = secret(upload), hkdf(upload, b"attempt-errors", known["context"])
    for index, message in enumerate(encoded(known, site)):
        noise = coins(errors, index << 32, len(message))
        masks = [v for a in public(known, index, len(message) // N) for v in product(a, s)]
        yield [(x + e + m) % known["modulus"] for x, e, m in zip(masks, noise, message, strict=True)]


def packed(known, residues):
    return struct.pack(f"<{len(residues)}{letter(known).upper()}", *residues)


def unpacked(known, content):
    return [residue for (residue,) in struct.iter_unpack(f"<{letter(known).upper()}", content)]


def shares(known, upload):
    t, n = known["threshold"], known["members"]
    seed = hkdf(upload, b"attempt-shares", t.to_bytes(4, "big"), n.to_bytes(4, "big"))
    uniform = (word & P for word in words(seed, 0, "I") if word & P != P)
    rows = [secret(upload), *(list(islice(uniform, N)) for _ in range(t - 1))]
    for x in range(1, n + 1):
        values = (sum(c * x**k for k, c in enumerate(each)) % P for each in zip(*rows, strict=True))
        yield struct.pack(f"<{N}I", *values)


def test_public_polynomials_in_plain_python(known):
    for chunk, expected in known["public"].items():
        found = [value for element in public(known, int(chunk), 32) for value in element]
        assert hexdigest(struct.pack(f"<{len(found)}{letter(known)}", *found)) == expected["sha256"]


def test_keys_shares_and_uploads_in_plain_python(known):
    for site, expected in enumerate(known["uploads"], 1):
        assert hexdigest(struct.pack(f"<{N}i", *secret(expected))) == expected["key"]["sha256"]
        assert [hexdigest(share) for share in shares(known, expected)] == expected["shares_sha256"]
        found = [hexdigest(packed(known, chunk)) for chunk in encrypted(known, site)]
        assert found == expected["chunks_sha256"]


def test_the_sum_opens_in_plain_python(known):
    q, uploads = known["modulus"], known["uploads"]
    total = unpacked(known, (FOLDER / f"{known['set']}-sum.bin").read_bytes())
    chunks = [list(encrypted(known, site)) for site in range(1, len(uploads) + 1)]
    added = [
        sum(residues) % q for index in (0, 1) for residues in zip(*(c[index] for c in chunks), strict=True)
    ]
    assert total == added

    s = [sum(coefficients) for coefficients in zip(*map(secret, uploads), strict=True)]
    assert hexdigest(struct.pack(f"<{N}i", *s)) == known["sum_key"]["sha256"]
    elements = -(-known["length"] // N)
    a = public(known, 0, elements) + public(known, 1, known["zero_elements"])
    masks = [value for polynomial in a for value in product(polynomial, s)]
    opened = [(x - y + q // 2) % q - q // 2 for x, y in zip(total, masks, strict=True)]
    zeros = opened[elements * N :]
    assert max(map(abs, zeros)) <= 8 * math.sqrt(16 * len(uploads))
    values = opened[: known["length"]]
    assert hexdigest(struct.pack(f"<{len(values)}i", *values)) == known["opened"]["sha256"]
