"""What NVIDIA FLARE 2.9.0 let through (2026), done to a site: flipped bits in a sum, and a peer's false counts."""

import numpy as np
import pytest

from cipherward.crypto.suites.payload import Layout, build
from cipherward.crypto.suites.site_side import site_side
from cipherward.errors import FormatError, VerificationError
from cipherward.site_agent.daemon.sums import Sums

FLIPS = 40


def test_no_sum_with_a_flipped_bit_is_opened(world):
    agent = world.admit()
    world.to_close(agent, 1)
    right, closed = list(world.coordinator.sum), agent.study.closing(1)
    for place in np.random.default_rng(40).choice(8 * len(right[0]), FLIPS, replace=False).tolist():
        flipped = bytearray(right[0])
        flipped[place // 8] ^= 1 << place % 8
        world.coordinator.sum = [bytes(flipped), *right[1:]]
        with pytest.raises((FormatError, VerificationError)):
            Sums(agent.study).get(1, closed)
    world.coordinator.sum = right
    assert list(Sums(agent.study).get(1, closed).chunks()) == right


def test_a_peer_that_claims_a_billion_patients_weighs_no_more(world):
    """Weights are the manifest's. A claim is seen in the shown figures only, and no further than the bound."""
    agent = world.admit()
    own = world.to_commit(agent, 1)
    claim = build(Layout(23, 3), np.full(23, 0.25, np.float32), [0.5, 0.5, 1e9], world.params.bound)
    with site_side("shared-key").cipher(agent.keys.get(world.trust), b"") as cipher:
        chunks = list(cipher.encrypt(claim))
    updates = {
        "alpha": own,
        "beta": (chunks, world.commit_of(1, "beta", chunks)),
        "gamma": world.peer_update(agent, 1, "gamma", -0.5),
    }
    world.close(agent, 1, updates)
    agent.release.catch_up(1, 1)
    row = agent.study.row()
    after = world.site.models.get(row.model_digest)
    assert row.model_round == 1
    assert np.abs(after - (world.trainer.update + np.float32(0.25) + np.float32(-0.5)) / 3).max() < 1e-4
    assert agent.study.journal.entry(1).patients <= 200 * (2 + world.params.bound + 1e-3)
