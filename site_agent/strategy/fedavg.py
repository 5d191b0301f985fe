"""Federated averaging (McMahan et al., AISTATS 2017) with the manifest's constants as weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cipherward.proto.v1.study_pb2 import Manifest
from cipherward.site_agent.strategy.base import Vector, require_size, site_scale, stepped, total_weight


class FedAvg:
    """weights + eta * mean of the updates."""

    def upload_scale(self, manifest: Manifest, site: str) -> float:
        """The site's weight over the largest."""
        return site_scale(manifest, site)

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
        rate, total = np.float64(manifest.strategy.server_learning_rate), total_weight(manifest, contributors)

        def step(summed: Vector, x: Vector) -> tuple[Vector]:
            return (x + rate * (summed / total),)

        return stepped(step, state, summed, manifest)


STRATEGY = FedAvg()
