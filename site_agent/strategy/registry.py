"""The strategies there are, by their names in manifests. A new one is a module here, and a line in
crypto/strategies.py with the rules on its constants."""

from __future__ import annotations

from cipherward.errors import UsageError
from cipherward.proto.v1.study_pb2 import Manifest
from cipherward.site_agent.strategy import dp_fedsgd, fedadam, fedavg, fedprox, fedyogi
from cipherward.site_agent.strategy.base import Strategy

STRATEGIES: dict[str, Strategy] = {
    "fedavg": fedavg.STRATEGY,
    "fedprox": fedprox.STRATEGY,
    "fedadam": fedadam.STRATEGY,
    "fedyogi": fedyogi.STRATEGY,
    "dp-fedsgd": dp_fedsgd.STRATEGY,
}


def strategy_of(manifest: Manifest) -> Strategy:
    """The one that the manifest names; UsageError if this version has none of that name."""
    name = manifest.strategy.name
    if name not in STRATEGIES:
        raise UsageError(
            f"there is no strategy {name[:80]!r}", why=f"this version has {', '.join(sorted(STRATEGIES))}"
        )
    return STRATEGIES[name]
