"""Adaptive federated optimisation (Reddi et al., ICLR 2021, Algorithm 2): the contributors' mean update Delta is a
pseudo-gradient for an adaptive method, whose moments m and v go with the weights x.

m = beta1 m + (1 - beta1) Delta;  v by the method;  x = x + eta m / (sqrt(v) + tau). As in the paper there is no bias
correction, and v begins at tau^2, m at zero. Weights and moments are kept in float32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cipherward.proto.v1.study_pb2 import Manifest
from cipherward.site_agent.strategy.base import Vector, require_size, site_scale, stepped, total_weight


class Adaptive(ABC):
    """State: weights, m, v, each (parameters,)."""

    @abstractmethod
    def second_moment(self, v: Vector, squared: Vector, beta2: np.float64) -> Vector:
        """The method's new v, from the one before and Delta^2."""

    def upload_scale(self, manifest: Manifest, site: str) -> float:
        """The site's weight over the largest."""
        return site_scale(manifest, site)

    def state_size(self, parameters: int) -> int:
        """Weights and two moments."""
        return 3 * parameters

    def server_step(
        self,
        state: NDArray[np.float32],
        summed: NDArray[np.float64],
        manifest: Manifest,
        contributors: Sequence[str],
    ) -> NDArray[np.float32]:
        """See ``base.Strategy``."""
        size, constants = manifest.parameter_count, manifest.strategy
        require_size(state, size, 3 * size)
        tau, beta1 = np.float64(constants.tau), np.float64(constants.beta1)
        rate, total = np.float64(constants.server_learning_rate), total_weight(manifest, contributors)

        def step(summed: Vector, x: Vector, *moments: Vector) -> tuple[Vector, Vector, Vector]:
            # Without moments it is the initial weights, which no round has given any.
            m, v = moments or (np.zeros(x.size), np.full(x.size, tau * tau))
            delta = summed / total
            m = beta1 * m + (1.0 - beta1) * delta
            v = self.second_moment(v, delta * delta, np.float64(constants.beta2))
            return x + rate * m / (np.sqrt(v) + tau), m, v

        return stepped(step, state, summed, manifest)
