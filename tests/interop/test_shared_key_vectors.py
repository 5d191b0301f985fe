"""Known answers of the wire format, and an opening of the sum in plain Python that shares no code with it."""

import json
from pathlib import Path

import numpy as np
import pytest

from cipherward.crypto.shared_key.params import PARAMETER_SETS
from cipherward.crypto.suites.registry import suite
from cipherward.crypto.suites.site_side import site_side
from cipherward.errors import FormatError

FOLDER = Path(__file__).parent.parent / "vectors" / "shared_key_v1"
VECTORS = json.loads((FOLDER / "vectors.json").read_text())
FILES = {
    name: (FOLDER / name).read_bytes() for name in ("key.bin", "upload-1.bin", "upload-2.bin", "sum.bin")
}
P = PARAMETER_SETS[VECTORS["parameters"]]
LENGTH, EXPECTED = VECTORS["length"], np.array(VECTORS["sum_of_values"])
SITE = site_side("shared-key")


def test_uploads_add_up_to_the_same_bytes():
    with suite("shared-key").chunk_adder(P) as adder:
        assert adder.add([FILES["upload-1.bin"], FILES["upload-2.bin"]], 0, LENGTH) == FILES["sum.bin"]


def test_the_key_opens_the_sum():
    key = SITE.load_key(P, FILES["key.bin"])
    known = VECTORS["key_digest"]
    assert key.digest(bytes.fromhex(known["context"])).hex() == known["digest"]
    with SITE.cipher(key, b"") as cipher:
        opened = cipher.open_sum([FILES["sum.bin"]], LENGTH, VECTORS["contributors"])
    assert np.abs(opened - EXPECTED).max() <= P.error_bound(2)
    # SEAL and the arithmetic below agree far below the noise: the same polynomial, evaluated.
    assert np.abs(opened - reference_opening(FILES["sum.bin"], FILES["key.bin"])[:LENGTH]).max() < 1e-9


@pytest.mark.parametrize("case", VECTORS["negative"], ids=lambda case: case["failure"])
def test_negative_vectors_are_refused_for_their_reason(case):
    content = FILES[case["file"]][: case.get("keep")] + bytes.fromhex(case.get("append", ""))
    if "at" in case:
        patch = bytes.fromhex(case.get("bytes", "")) or bytes(case["fill"])
        content = content[: case["at"]] + patch + content[case["at"] + len(patch) :]
    with pytest.raises(FormatError) as caught:
        if case["check"] == "key":
            SITE.load_key(P, content)
        elif case["check"] == "sum":
            P.check_sum_chunk(content, 0, LENGTH)
        else:
            P.check_upload_chunk(content, 0, LENGTH)
    assert case["why"] in caught.value.why


# An independent reading of the format, from its description: Python integers, no SEAL, no numpy but for
# the last evaluation.
N, Q, DELTA = 4096, 281474976694273, 2**30


def polynomial(content, offset):
    return [int.from_bytes(content[offset + 6 * i :][:6], "little") for i in range(N)]


def transform(values, root):
    """Values of the polynomial at 1, root, root^2, ...; its length is a power of two."""
    if len(values) == 1:
        return values
    even, odd = transform(values[::2], root * root % Q), transform(values[1::2], root * root % Q)
    out, power = [0] * len(values), 1
    for i, (a, b) in enumerate(zip(even, odd, strict=True)):
        out[i], out[i + len(even)] = (a + power * b) % Q, (a - power * b) % Q
        power = power * root % Q
    return out


def smallest_root():
    """SEAL's psi: the smallest primitive 2N-th root of unity."""
    psi = next(r for x in range(2, 100) if pow(r := pow(x, (Q - 1) // (2 * N), Q), N, Q) == Q - 1)
    return min(pow(psi, k, Q) for k in range(1, 2 * N, 2))


def reference_opening(sum_chunk, key):
    c0, c1, s = polynomial(sum_chunk, 16), polynomial(sum_chunk, 16 + 6 * N), polynomial(key, 16)
    # NTT form: place i has the value at psi^(2 brv(i) + 1), where brv reverses 12 bits.
    at_roots = [0] * N
    for i in range(N):
        at_roots[int(f"{i:012b}"[::-1], 2)] = (c0[i] + c1[i] * s[i]) % Q
    psi = smallest_root()
    back, inverse = pow(psi, -1, Q), pow(N, -1, Q)
    twisted = transform(at_roots, back * back % Q)
    message = [x * inverse * pow(back, j, Q) % Q for j, x in enumerate(twisted)]
    centred = np.array([m - Q if m > Q // 2 else m for m in message], dtype=np.float64)
    # Slot k is the value at exp(i pi 3^k / N): the first place's real part, the second's imaginary part.
    j = np.arange(N)
    slots = [np.sum(centred * np.exp(1j * np.pi * (pow(3, k, 2 * N) * j % (2 * N)) / N)) for k in range(8)]
    return np.array(slots).view(np.float64) / DELTA
