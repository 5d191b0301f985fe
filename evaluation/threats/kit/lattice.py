"""An attack found in review: a wrong key of the sum, made by lattice reduction, that opens checked zeros to zero.

The last of t members to answer knows the others' answers and so the key S of the sum. It picks S' = S - D and
answers so that every site rebuilds S', which opens each ring element C = a S + m + e to m + e + a D: everybody
applies a wrong sum. Two checks stand in its way: |S'| <= 32 |U|, and that zeros sent along open to noise. So D
must be short, and a D small in every coordinate that is checked.

With 8 zero *coordinates* checked and 40 coefficients of D free, that is a short vector of a q-ary lattice of
volume q^8 in 48 dimensions. Its shortest vectors have length about 1.7 q^(8/48) = 68 at q32, entries around 10,
and LLL finds almost as short ones in a tenth of a second. With whole ring elements checked there is no such D,
and so nothing to find (``zero_elements`` in the parameters has the count).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from flint import fmpz_mat
from numpy.typing import NDArray

from cipherward.crypto.quorum import shamir
from cipherward.crypto.quorum.decoding import PRIME, lagrange
from cipherward.crypto.quorum.params import DEGREE, QuorumParams, parameters
from cipherward.crypto.quorum.public import SUITE
from cipherward.crypto.quorum.ring import fold
from cipherward.crypto.quorum.sampling import PublicPolynomials
from cipherward.crypto.quorum.site import SITE_SIDE
from cipherward.errors import VerificationError

CONTEXT = b"a plan"
SITES = 3
THRESHOLD = 3
LENGTH = 5000
CHECKED = 8
"""Coordinates of the first zero element that the weak check looks at."""
FREE = 40
"""Coefficients of D that the attack uses; all others are 0."""


@dataclass
class Round:
    """A round up to the answers of the first members."""

    params: QuorumParams
    total: NDArray[np.float64]
    chunks: list[bytes]
    answers: dict[int, bytes]

    def opened(self, answers: dict[int, bytes]) -> NDArray[np.float64]:
        """What a site makes of these answers."""
        combined = next(SITE_SIDE.combine(self.params, answers, THRESHOLD, SITES))
        if combined.wrong:
            raise VerificationError("an answer does not fit the others")
        with SITE_SIDE.cipher(combined.key, CONTEXT) as cipher:
            return cipher.open_sum(self.chunks, LENGTH, SITES)


def play(parameter_set: str) -> Round:
    """Three sites, up to their honest answers."""
    params = parameters(parameter_set, bound=1.0, sites=SITES)
    rng = np.random.default_rng(1)
    keys = [SITE_SIDE.generate_key(params, b"site %d" % site) for site in range(SITES)]
    updates = rng.uniform(-1, 1, (SITES, LENGTH))
    uploads = []
    for key, update in zip(keys, updates, strict=True):
        with SITE_SIDE.cipher(key, CONTEXT) as cipher:
            uploads.append(list(cipher.encrypt(update)))
    with SUITE.chunk_adder(params) as adder:
        chunks = [adder.add(column, k, LENGTH) for k, column in enumerate(zip(*uploads, strict=True))]
    dealt = [key.deal(THRESHOLD, SITES) for key in keys]
    answers = {j + 1: SITE_SIDE.add_shares(params, [shares[j] for shares in dealt]) for j in range(SITES)}
    return Round(params, updates.sum(axis=0), chunks, answers)


def wrap(indices: NDArray[np.intp], a: NDArray[np.int64], modulus: int) -> NDArray[np.int64]:
    """Coefficients a_k of the ring's X^N = -1, for k from -N to N."""
    return np.where(indices >= 0, a[indices], -a[indices]) % modulus


def product(a: NDArray[np.int64], short: NDArray[np.int64], modulus: int) -> NDArray[np.int64]:
    """a * short in the ring, centred, by the definition. Both in natural order."""
    total = np.zeros(DEGREE, dtype=np.int64)
    for place in np.flatnonzero(short):
        total += wrap(np.arange(DEGREE) - place, a, modulus) * short[place] % modulus
    total %= modulus
    return total - modulus * (total > modulus // 2)


class Forger:
    """The last member to answer: it sees the other answers, and opens the sum before anyone else."""

    def __init__(self, played: Round) -> None:
        self.played, self.params = played, played.params
        self.secret, _ = next(shamir.candidates(played.answers, THRESHOLD, self.params.key_bound(SITES)))
        last = self.params.chunk_count(LENGTH) - 1
        words = np.empty((1, DEGREE), dtype=self.params.residue)
        folded = PublicPolynomials(self.params, CONTEXT).take([last], [0, 1], words, np.empty_like(words))[0]
        # Which coefficient stands where in arrays that hold polynomials in folded order.
        self.order = fold(np.arange(DEGREE))
        self.a = np.empty(DEGREE, dtype=np.int64)
        self.a[self.order] = folded
        zeros = np.frombuffer(played.chunks[last], dtype=self.params.residue)[:DEGREE].astype(np.int64)
        secret = np.empty(DEGREE, dtype=np.int64)
        secret[self.order] = self.secret
        noise = np.empty(DEGREE, dtype=np.int64)
        noise[self.order] = zeros
        noise = (noise - product(self.a, secret, self.params.modulus)) % self.params.modulus
        self.noise = noise - self.params.modulus * (noise > self.params.modulus // 2)

    def differences(self) -> list[NDArray[np.int64]]:
        """All D in an LLL-reduced basis (and -D) that pass both checks, the weak one of CHECKED coordinates."""
        checked, modulus = self.order[:CHECKED], self.params.modulus
        images = wrap(checked[None, :] - np.arange(FREE)[:, None], self.a, modulus)
        top = np.hstack([np.eye(FREE, dtype=np.int64), images])
        bottom = np.hstack(
            [np.zeros((CHECKED, FREE), dtype=np.int64), modulus * np.eye(CHECKED, dtype=np.int64)]
        )
        reduced = fmpz_mat(np.vstack([top, bottom]).tolist()).lll()
        found = []
        for row in reduced.tolist():
            values = np.array([int(entry) for entry in row], dtype=np.int64)
            for signed in (values, -values):
                difference = np.zeros(DEGREE, dtype=np.int64)
                difference[:FREE] = signed[:FREE]
                noise = self.noise[checked] + signed[FREE:]
                forged = np.abs(self.secret - difference[self.order]).max() <= self.params.key_bound(SITES)
                if difference.any() and forged and np.abs(noise).max() <= self.params.zero_bound(SITES):
                    found.append(difference)
        return found

    def answers(self, difference: NDArray[np.int64]) -> dict[int, bytes]:
        """The honest answers of the others, and its own, by which all rebuild S - D."""
        points = np.array(sorted(self.played.answers))
        weight = int(lagrange(points, np.zeros(1, dtype=np.int64))[0, -1])
        own = np.frombuffer(self.played.answers[SITES], dtype="<u4").astype(np.int64)
        shifted = (own - difference[self.order] * pow(weight, -1, PRIME)) % PRIME
        return self.played.answers | {SITES: shifted.astype("<u4").tobytes()}
