"""FedYogi (Reddi et al., ICLR 2021)."""

from __future__ import annotations

import numpy as np

from cipherward.site_agent.strategy.adaptive import Adaptive
from cipherward.site_agent.strategy.base import Vector


class FedYogi(Adaptive):
    """v moves towards Delta^2 by steps of its size, however far away it is."""

    def second_moment(self, v: Vector, squared: Vector, beta2: np.float64) -> Vector:
        """v - (1 - beta2) Delta^2 sign(v - Delta^2)."""
        return v - (1.0 - beta2) * squared * np.sign(v - squared)


STRATEGY = FedYogi()
