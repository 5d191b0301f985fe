"""An upload as the coordinator has it, taken for the update it might be."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cipherward.crypto.quorum.params import QuorumParams, parameters
from cipherward.crypto.suites.payload import Layout, build
from cipherward.crypto.suites.site_side import one_time_key_side

_SITES = 4


def upload(update: NDArray[np.floating], context: bytes) -> tuple[QuorumParams, list[bytes]]:
    """The chunks of one update in the quorum suite, under a fresh key: what the coordinator stores.

    ``update``: (P,), no metrics. ``context``: names the plan.
    """
    params = parameters("q32", None, _SITES)
    side = one_time_key_side("quorum")
    vector = build(Layout(len(update), 0), update.astype(np.float32), (), params.bound)
    with side.cipher(side.generate_key(params, context), context, threads=1) as cipher:
        return params, list(cipher.encrypt(vector))


def read_as_numbers(params: QuorumParams, chunks: list[bytes], count: int) -> NDArray[np.float64]:
    """The ciphertext's residues, centred and in the encoding's units: (count,). What they would be without a key."""
    residues = np.frombuffer(b"".join(chunks), dtype=params.residue)[:count].astype(np.int64)
    centred = np.where(residues > params.modulus // 2, residues - params.modulus, residues)
    return centred / params.scale
