"""FedProx (Li et al., MLSys 2020). Its proximal term is the site's training's (``constants.DpSgd.proximal``): what
the sites do with the sum is federated averaging."""

from __future__ import annotations

from cipherward.site_agent.strategy.fedavg import FedAvg


class FedProx(FedAvg):
    """weights + eta * mean of the updates."""


STRATEGY = FedProx()
