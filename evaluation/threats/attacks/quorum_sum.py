"""A round's sum through the real quorum suite, without a network: what t members open of the updates of U."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cipherward.crypto.manifest_rules import least_threshold
from cipherward.crypto.quorum.params import QuorumParams
from cipherward.crypto.suites.registry import suite
from cipherward.crypto.suites.site_side import one_time_key_side


def opened_sum(
    params: QuorumParams, vectors: Sequence[NDArray[np.float32]], members: int, context: bytes
) -> NDArray[np.float64]:
    """The sum of ``vectors``, each encrypted under a key of its own, opened with t of ``members``' shares."""
    side, threshold = one_time_key_side(params.suite), least_threshold(members)
    keys = [side.generate_key(params, context) for _ in vectors]
    uploads = []
    for key, vector in zip(keys, vectors, strict=True):
        with side.cipher(key, context, threads=1) as cipher:
            uploads.append(list(cipher.encrypt(vector)))
    length = len(vectors[0])
    with suite(params.suite).chunk_adder(params) as adder:
        summed = [adder.add(column, index, length) for index, column in enumerate(zip(*uploads, strict=True))]
    dealt = [key.deal(threshold, members) for key in keys]
    answers = {
        place + 1: side.add_shares(params, [shares[place] for shares in dealt]) for place in range(threshold)
    }
    combined = next(side.combine(params, answers, threshold, len(vectors)))
    with side.cipher(combined.key, context, threads=1) as cipher:
        return cipher.open_sum(summed, length, len(vectors))
