"""One step of DP-SGD (Abadi et al., CCS 2016) on the pooled data of a round's contributors.

A site's update is its sum of clipped gradients with its share of the noise, in units of ``noise_range`` standard
deviations of that share (``constants.SharedNoise``). The opened sum is the noised sum over all; the step divides it by
the contributors' expected batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cipherward.crypto.shared_noise import noise_share
from cipherward.proto.v1.study_pb2 import Manifest
from cipherward.site_agent.strategy.base import Vector, require_size, stepped


class DpFedSgd:
    """weights - eta_server * eta * sum of gradients / sum of divisors."""

    def upload_scale(self, manifest: Manifest, site: str) -> float:
        """1: sums of gradients are added up as they are."""
        return 1.0

    def state_size(self, parameters: int) -> int:
        """The weights alone."""
        return parameters

    def server_step(
        self,
        state: NDArray[np.float32],
        summed: NDArray[np.float64],
        manifest: Manifest,
        contributors: Sequence[str],
    ) -> NDArray[np.float32]:
        """See ``base.Strategy``."""
        require_size(state, manifest.parameter_count)
        divisors = {entry.name: entry.batch_divisor for entry in manifest.roster}
        batch = math.fsum(divisors[site] for site in contributors)
        unit = manifest.strategy.noise_range * noise_share(manifest)
        rate = manifest.strategy.server_learning_rate * manifest.dp.learning_rate

        def step(summed: Vector, x: Vector) -> tuple[Vector]:
            gradients = np.float64(unit) * summed
            return (x - np.float64(rate) * gradients / np.float64(batch),)

        return stepped(step, state, summed, manifest)


STRATEGY = DpFedSgd()
