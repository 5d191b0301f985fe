"""The strategies' constants in a manifest, and the rules on them, for everyone who checks one. What a strategy does
is the sites' own (site_agent/strategy).

fedavg     mean of the updates (McMahan et al. 2017)
fedprox    the same; a local step is drawn to where the round began by ``proximal`` (Li et al. 2020)
fedadam    the mean is a gradient for Adam at the server (Reddi et al. 2021), whose moments all sites keep
fedyogi    the same for Yogi
dp-fedsgd  a round is one step of DP-SGD on the pooled data; each site adds a share of the noise
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cipherward.crypto.quorum.params import own_params
from cipherward.crypto.requirements import need, positive, within
from cipherward.crypto.shared_noise import LEAST_UNITS, NOISE_ROOM, metrics_noise_share
from cipherward.crypto.suites.base import KeyLifetime
from cipherward.crypto.suites.registry import suite
from cipherward.errors import VerificationError
from cipherward.proto.v1.study_pb2 import Manifest, Strategy

SHARED_NOISE = "dp-fedsgd"


@dataclass(frozen=True, slots=True)
class StrategyKind:
    """``defaults``: of the constants that it has besides the server's learning rate. ``state_vectors``: how many
    vectors of the model's size the sites keep from round to round, the weights first."""

    server_learning_rate: float = 1.0
    defaults: dict[str, float] = field(default_factory=dict)
    state_vectors: int = 1


_ADAPTIVE = StrategyKind(0.1, {"beta1": 0.9, "beta2": 0.99, "tau": 1e-3}, state_vectors=3)
STRATEGIES = {
    "fedavg": StrategyKind(),
    "fedprox": StrategyKind(defaults={"proximal": 0.01}),
    "fedadam": _ADAPTIVE,
    "fedyogi": _ADAPTIVE,
    SHARED_NOISE: StrategyKind(defaults={"noise_range": 32.0}),
}
CONSTANTS = tuple(sorted({name for kind in STRATEGIES.values() for name in kind.defaults}))
_MOST_RANGE = 1024.0


def strategy_kind(name: str) -> StrategyKind:
    """Raises VerificationError if this version has no such strategy."""
    if name not in STRATEGIES:
        raise VerificationError(
            f"there is no strategy {name[:80]!r}", why=f"this version has {', '.join(sorted(STRATEGIES))}"
        )
    return STRATEGIES[name]


def state_values(manifest: Manifest) -> int:
    """Values of the state that a round ends with: the weights, and the strategy's moments after them."""
    return int(manifest.parameter_count) * strategy_kind(manifest.strategy.name).state_vectors


def check_strategy(manifest: Manifest) -> None:
    """The strategy's own rules. Raises VerificationError that names the one broken."""
    strategy = manifest.strategy
    kind = strategy_kind(strategy.name)
    positive(strategy.server_learning_rate, "the server's learning rate")
    for name in CONSTANTS:
        value: float = getattr(strategy, name)
        need(name in kind.defaults or value == 0, f"the strategy {strategy.name} has no constant {name}")
    if strategy.name == "fedprox":
        positive(strategy.proximal, "fedprox's constant proximal (mu)")
    if kind is _ADAPTIVE:
        _check_adaptive(strategy)
    if strategy.name == SHARED_NOISE:
        _check_shared_noise(manifest)


def _check_adaptive(strategy: Strategy) -> None:
    for name in ("beta1", "beta2"):
        value: float = getattr(strategy, name)
        need(0 <= value < 1, f"{strategy.name}'s constant {name} is {value:g}", "it must lie in [0, 1)")
    positive(strategy.tau, f"{strategy.name}'s constant tau")


def _check_shared_noise(manifest: Manifest) -> None:
    need(
        suite(manifest.suite.name).key_lifetime is KeyLifetime.ATTEMPT,
        f"the strategy {SHARED_NOISE} cannot run in the suite {manifest.suite.name[:80]}",
        "one site together with the coordinator could open single updates there, which have a share of the noise only",
    )
    need(
        not manifest.dp_disabled,
        f"the strategy {SHARED_NOISE} cannot run with dp_disabled",
        "what a site uploads is made of its noise",
    )
    steps = manifest.dp.steps
    need(
        steps == 1,
        f"{SHARED_NOISE} has {steps} steps a round",
        "a round is one step over all sites: steps = 1",
    )
    need(
        manifest.colluders >= 1,
        f"{SHARED_NOISE} is to withstand no colluding site",
        "a site that is curious alone subtracts its own noise: colluders must be at least 1",
    )
    need(
        all(site.weight == 1 for site in manifest.roster),
        f"{SHARED_NOISE} has sites of different weights",
        "sums of gradients are added up as they are: every weight is 1",
    )
    bound, reach = manifest.suite.bound, manifest.strategy.noise_range
    need(
        bound == 1,
        f"the bound is {bound:g} with {SHARED_NOISE}",
        "its updates lie in [-1, 1]: suite.bound = 1",
    )
    within(reach, 2 * NOISE_ROOM, _MOST_RANGE, f"{SHARED_NOISE}'s constant noise_range")
    _check_units(manifest)


def _check_units(manifest: Manifest) -> None:
    """The noise is far above the encoding's unit 1/D, and fits."""
    params = suite(manifest.suite.name).parameters(manifest.suite.parameters, 1.0, len(manifest.roster))
    scale = own_params(params).scale
    units = scale / manifest.strategy.noise_range
    need(
        units >= LEAST_UNITS,
        f"one site's noise would be {units:.3g} units of the encoding by {params.name}",
        f"with {len(manifest.roster)} sites a unit is 1/{scale:g}; at least {LEAST_UNITS:g} units are needed: "
        "take a smaller noise_range, or the parameters q32",
    )
    share = metrics_noise_share(manifest)
    units = share / manifest.dp.metrics.scale * scale
    need(
        units >= LEAST_UNITS,
        f"one site's noise on the metrics would be {units:.3g} units of the encoding by {params.name}",
        f"at least {LEAST_UNITS:g} are needed: take a smaller metrics.scale, more noise, or the parameters q32",
    )
    least = 2 * NOISE_ROOM * share
    need(
        manifest.dp.metrics.scale >= least,
        f"the scale of the metrics is {manifest.dp.metrics.scale:g}",
        f"their noise alone needs half of {least:.4g}, and as much is to be left for the patients",
    )
