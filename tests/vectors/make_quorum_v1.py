"""Makes the known answers of the quorum suite: ``python tests/vectors/make_quorum_v1.py FOLDER``.

FOLDER is ``tests/vectors/quorum_v1`` or has a copy of its ``sealed/``. Everything but ``sealed/``,
``negative.json`` and ``README.md`` is written, from fixed keys and the stored seals, and comes out the same to
the byte. A change of the wire format needs a new folder, not other bytes in this one.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from quorum_v1_round import make_round, opened_units, total_of
from quorum_v1_study import SITES, THRESHOLD, fixed

from cipherward.crypto.quorum.key import QuorumKey, SumKey
from cipherward.crypto.quorum.params import DEGREE, MAX_LENGTH, QuorumParams, parameters
from cipherward.crypto.quorum.sampling import PublicPolynomials
from cipherward.crypto.quorum.shamir import add_shares, candidates
from cipherward.crypto.quorum.site import SITE_SIDE

COUNT, LENGTH = 3, 2050
CONTEXT = b"quorum_v1: the context of a plan"


def sha(content: bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def update(params: QuorumParams, site: int) -> NDArray[np.float64]:
    """Update ``site``, from 1."""
    j = np.arange(LENGTH)
    return params.bound * ((1009 * site * (j + 1)) % 2001 - 1000) / 1000


def public_polynomials(params: QuorumParams) -> dict[str, Any]:
    """The first two chunks and the last that there can be, as 32 elements each."""
    found = {}
    for chunk in (0, 1, params.data_chunks(MAX_LENGTH) - 1):
        words = np.empty((32, DEGREE), dtype=params.residue)
        signed = PublicPolynomials(params, CONTEXT).take([chunk], [0, 32], words, np.empty_like(words))
        found[str(chunk)] = {
            "sha256": sha(signed.tobytes()),
            "first": signed[0, :4].tolist(),
            "last": signed[-1, -4:].tolist(),
        }
    return found


def key_sha256(polynomial: NDArray[np.int64]) -> str:
    """Over the coefficients in folded order as little-endian int32."""
    return sha(polynomial.astype("<i4").tobytes())


def sum_key(params: QuorumParams, dealt: Sequence[Sequence[bytes]]) -> SumKey:
    """Rebuilt from the answers of the first members."""
    answers = {j + 1: add_shares([shares[j] for shares in dealt]) for j in range(THRESHOLD)}
    secret, _ = next(candidates(answers, THRESHOLD, params.key_bound(len(dealt))))
    return SumKey(params, secret, len(dealt))


def make_set(folder: Path, name: str) -> dict[str, Any]:
    """Public polynomials, three keys, their shares and uploads, the sum, what it opens to."""
    params = parameters(name, None, COUNT)
    uploads, dealt, sites = [], [], []
    for site in range(1, COUNT + 1):
        randomness, hedge = fixed(f"randomness {site}"), f"hedge {site}".encode()
        key = QuorumKey(params, randomness, hedge)
        uploads.append(list(SITE_SIDE.cipher(key, CONTEXT).encrypt(update(params, site))))
        dealt.append(key.deal(THRESHOLD, len(SITES)))
        # The polynomial is given out once, so it takes a second key from the same material.
        polynomial, _ = QuorumKey(params, randomness, hedge).spend(CONTEXT)
        sites.append(
            {
                "randomness": randomness.hex(),
                "hedge": hedge.hex(),
                "key": {"sha256": key_sha256(polynomial), "first": polynomial[:8].tolist()},
                "shares_sha256": [sha(share) for share in dealt[-1]],
                "chunks_sha256": [sha(chunk) for chunk in uploads[-1]],
            }
        )
    total, key_of_sum = total_of(params, uploads, LENGTH), sum_key(params, dealt)
    with SITE_SIDE.cipher(key_of_sum, CONTEXT) as cipher:
        opened = opened_units(params, cipher.open_sum(total, LENGTH, COUNT))
    (folder / f"{name}-upload-1.bin").write_bytes(b"".join(uploads[0]))
    (folder / f"{name}-sum.bin").write_bytes(b"".join(total))
    return {
        "modulus": params.modulus,
        "bound": params.bound,
        "sites": COUNT,
        "scale": params.scale,
        "zero_elements": params.zero_elements,
        "context": CONTEXT.hex(),
        "length": LENGTH,
        "threshold": THRESHOLD,
        "members": len(SITES),
        "public": public_polynomials(params),
        "uploads": sites,
        "sum_key": {
            "sha256": key_sha256(key_of_sum.polynomial()),
            "first": key_of_sum.polynomial()[:8].tolist(),
        },
        "opened": {"sha256": sha(opened.tobytes()), "first": opened[:8].tolist()},
    }


def main(folder: Path) -> None:
    """Write everything that is not random."""
    index = {
        "about": "Known answers of the quorum suite, wire format cipherward-quorum 1; README.md explains them.",
        "sets": {name: make_set(folder, name) for name in ("q32", "q16")},
        "round": make_round(folder),
    }
    (folder / "vectors.json").write_text(json.dumps(index, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
