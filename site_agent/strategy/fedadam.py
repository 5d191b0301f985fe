"""FedAdam (Reddi et al., ICLR 2021)."""

from __future__ import annotations

import numpy as np

from cipherward.site_agent.strategy.adaptive import Adaptive
from cipherward.site_agent.strategy.base import Vector


class FedAdam(Adaptive):
    """v is a decaying mean of Delta^2."""

    def second_moment(self, v: Vector, squared: Vector, beta2: np.float64) -> Vector:
        """beta2 v + (1 - beta2) Delta^2."""
        return beta2 * v + (1.0 - beta2) * squared


STRATEGY = FedAdam()
