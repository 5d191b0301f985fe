"""Microsoft SEAL opens sums of the quorum suite with the summed key, and we open what SEAL encrypts.

SEAL's context is made as a user of SEAL makes one, with its security check on: it accepts N = 2048 with q32 at
its 192-bit level and with q16 at its 256-bit level. A ring element c and its public polynomial a are the SEAL
ciphertext (c, -a); files are written and read in SEAL's format, uncompressed, by the shared-key suite's code.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import tenseal.sealapi as seal

from cipherward.crypto.quorum import chunks
from cipherward.crypto.quorum.key import SumKey
from cipherward.crypto.quorum.params import DEGREE
from cipherward.crypto.quorum.ring import fold, unfold
from cipherward.crypto.quorum.sampling import PublicPolynomials
from cipherward.crypto.shared_key.native import Scratch
from cipherward.crypto.shared_key.seal_file import SealFormat
from cipherward.crypto.suites.registry import suite
from cipherward.crypto.suites.site_side import one_time_key_side
from cipherward.errors import VerificationError

SUITE, SITE = suite("quorum"), one_time_key_side("quorum")
SITES, THRESHOLD, LENGTH = 4, 3, 2 * DEGREE + 7
CONTEXT = b"manifest and plan record"
LEVELS = {"q32": seal.SEC_LEVEL_TYPE.TC192, "q16": seal.SEC_LEVEL_TYPE.TC256}
SEAL_NOISE = 20
"""SEAL's errors are Gaussians of sigma 3.2, cut at 19.2."""


class Transform:
    """The negacyclic number-theoretic transform as SEAL orders it (Longa and Naehrig 2016, algorithms 1 and 2).

    Place i has the polynomial's value at psi^(2 rev(i) + 1); psi is the smallest primitive 2N-th root of unity
    modulo q, and rev reverses the 11 bits of i.
    """

    def __init__(self, modulus):
        self.q = np.uint64(modulus)
        candidates = (pow(base, (modulus - 1) // (2 * DEGREE), modulus) for base in range(2, 1000))
        some = next(root for root in candidates if pow(root, DEGREE, modulus) == modulus - 1)
        self.psi = min(pow(some, odd, modulus) for odd in range(1, 2 * DEGREE, 2))
        powers = [pow(self.psi, reverse(k), modulus) for k in range(DEGREE)]
        self.powers = np.array(powers, dtype=np.uint64)
        self.inverses = np.array([pow(power, -1, modulus) for power in powers], dtype=np.uint64)
        self.inverse_of_degree = np.uint64(pow(DEGREE, -1, modulus))

    def forward(self, coefficients):
        """Integers of any sign, in natural order, to SEAL's residues."""
        q, x = self.q, (np.asarray(coefficients, dtype=np.int64) % np.int64(self.q)).astype(np.uint64)
        for m in (1 << level for level in range(11)):
            u, v = np.moveaxis(x.reshape(m, 2, -1), 1, 0)
            v = v * self.powers[m : 2 * m, None] % q  # two residues' product fits 64 bits
            x = np.stack([(u + v) % q, (u + q - v) % q], axis=1)
        return x.reshape(DEGREE)

    def backward(self, places):
        """Coefficients in natural order, centred."""
        q, x = self.q, places
        for m in (1 << level for level in reversed(range(11))):
            u, v = np.moveaxis(x.reshape(m, 2, -1), 1, 0)
            x = np.stack([(u + v) % q, (u + q - v) % q * self.inverses[m : 2 * m, None] % q], axis=1)
        residues = (x.reshape(DEGREE) * self.inverse_of_degree % q).astype(np.int64)
        return np.where(residues > int(q) // 2, residues - np.int64(q), residues)


def reverse(index):
    return int(f"{index:011b}"[::-1], 2)


def schoolbook(x, y, modulus):
    """x y modulo X^N + 1 and q, residues; every product of coefficients is formed, of 11 bits of y at a time."""
    full = sum(np.convolve(x, (y % modulus) >> shift & 2047).astype(object) << shift for shift in (0, 11, 22))
    low, high = full[:DEGREE], np.append(full[DEGREE:], 0)
    return ((low - high) % modulus).astype(np.int64)


def slots(coefficients):
    """The complex numbers that CKKS encodes in the coefficients: their values at exp(i pi 3^k / N)."""
    j = np.arange(DEGREE)
    values = np.fft.ifft(coefficients * np.exp(1j * np.pi * j / DEGREE)) * DEGREE  # at exp(i pi (2m + 1) / N)
    return values[[(pow(3, k, 2 * DEGREE) - 1) // 2 for k in range(DEGREE // 2)]]


@dataclass
class Seal:
    """SEAL, its files, and its transform, for one set."""

    context: seal.SEALContext
    files: SealFormat
    transform: Transform
    scratch: Scratch

    @classmethod
    def of(cls, params):
        parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
        parameters.set_poly_modulus_degree(DEGREE)
        parameters.set_coeff_modulus([seal.Modulus(params.modulus)])
        context = seal.SEALContext(parameters, True, LEVELS[params.name])
        assert context.parameters_set(), context.parameters_error_message()
        scratch = Scratch()
        seal.Plaintext().save(scratch.path)
        head = scratch.read()
        files = SealFormat(
            version=(head[3], head[4]), degree=DEGREE, primes=1, key_primes=1, scale=float(params.scale),
            parms_id=np.array(context.first_parms_id(), dtype="<u8").tobytes(),
            key_parms_id=np.array(context.key_parms_id(), dtype="<u8").tobytes(),
        )  # fmt: skip
        return cls(context, files, Transform(params.modulus), scratch)

    def load(self, native, file):
        self.scratch.write(file)
        native.load(self.context, self.scratch.path)
        return native

    def save(self, native):
        self.scratch.clear()
        native.save(self.scratch.path)
        return self.scratch.read()

    def secret_key(self, polynomial):
        """Ours, folded, as SEAL's."""
        return self.load(
            seal.SecretKey(), self.files.write_key(self.transform.forward(unfold(polynomial))[None])
        )

    def ciphertext(self, element, public):
        """Ours, in natural order, as SEAL's."""
        parts = self.transform.forward(element), self.transform.forward(-public)
        return self.load(seal.Ciphertext(), self.files.write_full(*parts))

    def decrypt(self, key, ciphertext):
        plain = seal.Plaintext()
        seal.Decryptor(self.context, key).decrypt(ciphertext, plain)
        return plain

    def coefficients(self, plain):
        """Of a plaintext in SEAL's transformed form, in natural order, centred."""
        return self.transform.backward(np.array([plain.data(i) for i in range(DEGREE)], dtype=np.uint64))


class World:
    """Four sites' updates, their sum, and the key of the sum."""

    def __init__(self, name):
        self.params = SUITE.parameters(name, None, SITES)
        self.seal = Seal.of(self.params)
        rng, bound = np.random.default_rng(3), self.params.bound
        self.vectors = rng.uniform(-bound, bound, (SITES, LENGTH))
        self.vectors[:, :2] = [bound, -bound]
        keys = [SITE.generate_key(self.params, b"") for _ in range(SITES)]
        self.uploads = [
            list(SITE.cipher(key, CONTEXT).encrypt(vector))
            for key, vector in zip(keys, self.vectors, strict=True)
        ]
        shares = [key.deal(THRESHOLD, SITES) for key in keys]
        answers = {
            j: SITE.add_shares(self.params, [share[j - 1] for share in shares])
            for j in range(1, THRESHOLD + 1)
        }
        self.key = next(iter(SITE.combine(self.params, answers, THRESHOLD, SITES))).key
        with SUITE.chunk_adder(self.params) as adder:
            self.total = [adder.add([upload[i] for upload in self.uploads], i, LENGTH) for i in range(2)]

    def elements(self, some_chunks):
        """(chunk, element, c and a in natural order) of every ring element."""
        for index, chunk in enumerate(some_chunks):
            found = np.frombuffer(chunk, dtype=self.params.residue).reshape(-1, DEGREE)
            words = np.empty_like(found)
            source, bounds = PublicPolynomials(self.params, CONTEXT), [0, len(found)]
            public = source.take([index], bounds, words, np.empty_like(found))
            for k, (c, a) in enumerate(zip(found, public, strict=True)):
                yield index, k, unfold(c).astype(np.int64), unfold(a).astype(np.int64)

    def message(self, index, element):
        """Sum of the encoded values, in natural order."""
        whole = np.zeros((SITES, 3 * DEGREE))
        if index == 0:
            whole[:, :LENGTH] = np.rint(self.vectors * self.params.scale)
        return unfold(whole.sum(axis=0)[element * DEGREE : (element + 1) * DEGREE])


@pytest.fixture(scope="module", params=["q32", "q16"])
def world(request):
    return World(request.param)


def test_the_transform_is_what_it_says(world):
    transform, q = world.seal.transform, world.params.modulus
    rng = np.random.default_rng(1)
    x, y = (rng.integers(-(q // 2), q // 2 + 1, DEGREE) for _ in range(2))
    places = transform.forward(x)
    assert np.array_equal(transform.backward(places), x)
    for i in (0, 1, 2, 1029, DEGREE - 1):  # by the definition, in Python's integers
        point = pow(transform.psi, 2 * reverse(i) + 1, q)
        assert places[i] == sum(c * pow(point, j, q) for j, c in enumerate(x.tolist())) % q
    product = transform.backward(places * transform.forward(y) % np.uint64(q))
    assert np.array_equal(product % q, schoolbook(x, y, q))


def test_seal_opens_the_sum_with_the_summed_key(world):
    params, key = world.params, world.seal.secret_key(world.key.polynomial())
    encoder, seen = seal.CKKSEncoder(world.seal.context), []
    for index, element, c, a in world.elements(world.total):
        plain = world.seal.decrypt(key, world.seal.ciphertext(c, a))
        coefficients = world.seal.coefficients(plain)
        noise = coefficients - world.message(index, element)
        assert np.abs(noise).max() <= params.zero_bound(SITES)
        # SEAL's own decoder, which knows neither our transform nor our order.
        assert np.allclose(encoder.decode_complex(plain), slots(coefficients) / params.scale, atol=1e-6)
        seen.append(noise)
    # Four errors of sigma 4: neither less (then they were not encrypted by the suite's rules) nor more.
    assert 7.5 < np.std(seen) < 8.5


def test_seal_adds_our_ciphertexts_to_the_same_sum(world):
    evaluator, whole = seal.Evaluator(world.seal.context), seal.Ciphertext()
    first = [next(iter(world.elements(upload))) for upload in world.uploads]
    evaluator.add_many([world.seal.ciphertext(c, a) for _, _, c, a in first], whole)
    added, _ = world.seal.files.read_full(world.seal.save(whole))
    _, _, ours, _ = next(iter(world.elements(world.total)))
    assert np.array_equal(world.seal.transform.backward(added[0]) % world.params.modulus, ours)


def test_seal_opens_nothing_with_another_key_or_another_order(world):
    params, secret = world.params, world.key.polynomial()
    wrong = secret.copy()
    wrong[0] += 1
    _, _, c, a = list(world.elements(world.total))[-1]
    for key, element in ((wrong, c), (secret, fold(c)), (fold(secret), c)):
        opened = world.seal.decrypt(world.seal.secret_key(key), world.seal.ciphertext(element, a))
        assert np.abs(world.seal.coefficients(opened)).max() > 10 * params.zero_bound(SITES)


class Drawn:
    """In place of ``PublicPolynomials``: those that SEAL drew for each chunk, in natural order."""

    def __init__(self, polynomials):
        self._polynomials = polynomials

    def take(self, chunks, bounds, words, scratch):
        found = words.view(f"<i{words.itemsize}")
        found[...] = fold(np.concatenate([self._polynomials[chunk] for chunk in chunks]))
        return found


@pytest.mark.parametrize("maker", ["our key", "SEAL's key"])
def test_we_open_what_seal_encrypts(world, maker, monkeypatch):
    """SEAL draws its own public polynomials, so the suite's code opens with those; all else is as in a round."""
    params, native, transform = world.params, world.seal, world.seal.transform
    if maker == "our key":
        key, secret = world.key, native.secret_key(world.key.polynomial())
    else:
        secret = seal.KeyGenerator(native.context).secret_key()
        (residues,) = native.files.read_key(native.save(secret))
        key = SumKey(params, fold(transform.backward(residues)), 1)
    encryptor, encoder = seal.Encryptor(native.context, secret), seal.CKKSEncoder(native.context)

    def encrypted(values):
        """c and a, in natural order, for the values of one ring element."""
        plain, ciphertext = seal.Plaintext(), seal.Ciphertext()
        encoder.encode(slots(unfold(values)).tolist(), float(params.scale), plain)
        encryptor.encrypt_symmetric(plain, ciphertext)
        c0, c1 = native.files.read_full(native.save(ciphertext))
        return transform.backward(c0[0]), -transform.backward(c1[0])

    values = np.zeros((3, DEGREE))
    values.reshape(-1)[:LENGTH] = np.random.default_rng(9).uniform(-params.bound, params.bound, LENGTH)
    plain_chunks = [values, np.zeros((params.zero_elements, DEGREE))]
    pairs = [np.array([encrypted(row) for row in rows]) for rows in plain_chunks]
    total = [fold(pair[:, 0] % params.modulus).astype(params.residue) for pair in pairs]
    drawn = Drawn([pair[:, 1] for pair in pairs])
    monkeypatch.setattr(chunks, "PublicPolynomials", lambda params, context: drawn)

    def opened():
        with SITE.cipher(key, CONTEXT) as cipher:
            return cipher.open_sum([chunk.tobytes() for chunk in total], LENGTH, key.contributors)

    errors = (opened() - values.reshape(-1)[:LENGTH]) * params.scale
    assert np.abs(errors).max() <= SEAL_NOISE + 1  # and a rounding
    assert np.std(errors) > 3
    total[1][0, 5] = (int(total[1][0, 5]) + params.modulus // 3) % params.modulus
    with pytest.raises(VerificationError, match="encodes zero"):
        opened()
