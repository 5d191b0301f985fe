"""Sums of noised updates through the set q16, with the suite's own code from encryption to opening."""

import numpy as np
import pytest

from cipherward.crypto.manifest_rules import effective_threshold
from cipherward.crypto.quorum.params import parameters
from cipherward.crypto.quorum.site import SITE_SIDE
from cipherward.crypto.suites.payload import Layout, build, split
from cipherward.crypto.suites.registry import suite
from cipherward.errors import VerificationError

CONTEXT = bytes(range(64))
LAYOUT = Layout(3000, 3)
RANGE = 32.0


def opened_sum(params, vectors):
    """All sites in this process; as many answer as must."""
    count = len(vectors)
    threshold = effective_threshold(0, count)
    keys = [SITE_SIDE.generate_key(params, vector.tobytes()) for vector in vectors]
    dealt = [key.deal(threshold, count) for key in keys]
    uploads = []
    for key, vector in zip(keys, vectors, strict=True):
        with SITE_SIDE.cipher(key, CONTEXT, 1) as cipher:
            uploads.append(list(cipher.encrypt(vector)))
    with suite("quorum").chunk_adder(params) as adder:
        total = [
            adder.add(chunks, index, LAYOUT.length) for index, chunks in enumerate(zip(*uploads, strict=True))
        ]
    answers = {
        member + 1: SITE_SIDE.add_shares(params, [shares[member] for shares in dealt])
        for member in range(threshold)
    }
    combined = next(SITE_SIDE.combine(params, answers, threshold, count))
    with SITE_SIDE.cipher(combined.key, CONTEXT, 1) as cipher:
        return cipher.open_sum(total, LAYOUT.length, count)


def noised(generator, size):
    """What dp-fedsgd uploads, of noise alone."""
    return np.clip(generator.normal(size=size) / RANGE, -1, 1).astype(np.float32)


def test_32_sites_open_the_sum_and_know_that_it_is_of_32():
    sites = 32
    params, generator = parameters("q16", 1.0, sites), np.random.default_rng(5)
    updates = [noised(generator, LAYOUT.parameters) for _ in range(sites)]
    vectors = [build(LAYOUT, update, [0.25, 0.5, -0.75], 1.0) for update in updates]
    vector = opened_sum(params, vectors)
    opened = split(LAYOUT, vector, sites, params)
    exact = np.sum(updates, axis=0, dtype=np.float64)
    assert np.abs(opened.update - exact).max() < params.error_bound(sites)
    # The noise is 16 units a site: what the scheme adds is a 16th of it in variance.
    assert np.var(opened.update - exact) / np.var(exact) == pytest.approx(1 / 16, rel=0.15)
    assert opened.metrics == pytest.approx([8, 16, -24], abs=params.error_bound(sites))
    for wrong in (31, 33):
        with pytest.raises(VerificationError, match="check constant"):
            split(LAYOUT, vector, wrong, parameters("q16", 1.0, 33))


def test_the_largest_values_of_all_sites_do_not_overflow():
    sites = 32
    params = parameters("q16", 1.0, sites)
    update = np.where(np.arange(LAYOUT.parameters) % 2, 1, -1).astype(np.float32)
    vector = opened_sum(params, [build(LAYOUT, update, [1.0, -1.0, 1.0], 1.0)] * sites)
    opened = split(LAYOUT, vector, sites, params)
    assert np.abs(opened.update - sites * update).max() < params.error_bound(sites)
