"""The demo's study by each strategy: constants that make sense on the heart data (docs/accuracy.md), and its
study.toml."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

from cipherward.crypto.manifest_rules import colluders_withstood, least_threshold
from cipherward.crypto.quorum.params import Q16, Q32
from cipherward.crypto.quorum.params import parameters as quorum_parameters
from cipherward.crypto.shared_noise import METRICS_SENSITIVITY, NOISE_ROOM
from cipherward.crypto.strategies import SHARED_NOISE, STRATEGIES
from cipherward.crypto.study_file import StudyFile
from cipherward.crypto.suites.base import KeyLifetime
from cipherward.crypto.suites.registry import suite as find_suite
from cipherward.errors import UsageError
from cipherward.evaluation.demo.consortium import COORDINATOR
from cipherward.site_agent.tasks.heart_disease.defaults import HEART_STUDY, StudyDefaults

HOSPITALS = ("cleveland", "hungary", "switzerland", "va-long-beach")
TASK, STUDY = "heart-disease", "heart"


@dataclass(frozen=True, slots=True)
class DemoStudy:
    """One strategy's. ``training``: the constants of a round; its noise follows from epsilon over all rounds."""

    strategy: str
    training: StudyDefaults
    server_learning_rate: float = 1.0


_SHARED = replace(
    HEART_STUDY,
    rounds=10,
    steps=1,
    sampling_rate=0.5,
    divisor=80.0,
    learning_rate=8.0,
    clip_norm=0.5,
    metrics_noise_multiplier=20.0,  # paid in every round, and there are twice as many
)
_STUDIES = {
    "fedavg": DemoStudy("fedavg", HEART_STUDY),
    "fedprox": DemoStudy("fedprox", HEART_STUDY),
    "fedadam": DemoStudy("fedadam", HEART_STUDY, STRATEGIES["fedadam"].server_learning_rate),
    "fedyogi": DemoStudy("fedyogi", HEART_STUDY, STRATEGIES["fedyogi"].server_learning_rate),
    SHARED_NOISE: DemoStudy(SHARED_NOISE, _SHARED),
}


def demo_study(strategy: str, rounds: int | None, epsilon: float) -> DemoStudy:
    """The strategy's study in so many rounds (None: as many as suit it) at that epsilon. UsageError for a strategy
    that there is not."""
    if strategy not in _STUDIES:
        raise UsageError(
            f"there is no strategy {strategy[:80]!r}", why=f"this version has {', '.join(sorted(STRATEGIES))}"
        )
    chosen = _STUDIES[strategy]
    rounds = chosen.training.rounds if rounds is None else rounds
    return replace(chosen, training=replace(chosen.training, rounds=rounds, epsilon=epsilon))


def check_demo(study: DemoStudy, suite: str, count: int) -> None:
    """UsageError for a suite that there is not, and for what no manifest of ``count`` sites may ask for."""
    one_key = find_suite(suite).key_lifetime is KeyLifetime.STUDY
    if study.strategy == SHARED_NOISE and one_key:
        raise UsageError(
            f"the strategy {SHARED_NOISE} cannot run in the suite {suite}",
            why="the sites share one noise, and there one site can open an update with its own part of it alone",
            fix="Use --suite quorum, or another strategy",
        )
    if study.strategy == SHARED_NOISE and colluders_withstood(least_threshold(count), count) < 1:
        raise UsageError(
            f"the strategy {SHARED_NOISE} cannot run with {count} sites",
            why="with so few it would withstand no colluding site, and none would have a guarantee",
            fix="Use --sites 3 or more, or another strategy",
        )


def study_file(study: DemoStudy, suite: str, sources: Collection[str], noise_multiplier: float) -> StudyFile:
    """What the organisers of a study of the sites ``sources`` would write."""
    training, count = study.training, len(sources)
    one_key = find_suite(suite).key_lifetime is KeyLifetime.STUDY
    # Parts of a hospital have fewer patients, and so expect smaller batches.
    part = min(1.0, len(HOSPITALS) / count)
    return StudyFile.model_validate(
        {
            "study": {
                "name": STUDY,
                "rounds": training.rounds,
                "coordinator": COORDINATOR,
                "strategy": study.strategy,
                "server_learning_rate": study.server_learning_rate,
            },
            "task": {"name": TASK},
            "training": {
                "sampling_rate": training.sampling_rate,
                "steps": training.steps,
                "learning_rate": training.learning_rate,
                "batch_divisor": training.divisor * part,
            },
            "metrics": {"loss_bound": training.loss_bound, "scale": _metrics_scale(study, count, part)},
            "dp": {
                "clipping_norm": training.clip_norm,
                "noise_multiplier": noise_multiplier,
                "delta": training.delta,
                "metrics": {"noise_multiplier": training.metrics_noise_multiplier},
            },
            "suite": {
                "name": suite,
                "parameters": _parameters(study, suite, count),
                "key_maker": min(sources) if one_key else "",
            },
            "cohort": {"minimum": _minimum(study, count, one_key=one_key)},
            "deadlines": {"join_window": 300, "upload": 120, "acknowledge": 60, "unseal": 60, "verify": 120},
        }
    )


def _parameters(study: DemoStudy, suite: str, count: int) -> str:
    """The suite's first set, and for shared noise q16 as long as it has room for the sites."""
    chosen = find_suite(suite)
    if study.strategy != SHARED_NOISE or chosen.key_lifetime is KeyLifetime.STUDY:
        return next(iter(chosen.parameter_sets))
    try:
        return quorum_parameters(Q16.name, 1.0, count).name
    except UsageError:
        return Q32.name


def _minimum(study: DemoStudy, count: int, *, one_key: bool) -> int:
    """k. Where the noise is shared all must contribute: each of fewer would have to add more of it."""
    if study.strategy == SHARED_NOISE:
        return count
    return max(2, count * 3 // 4 if one_key else least_threshold(count))


def _metrics_scale(study: DemoStudy, count: int, part: float) -> float:
    if study.strategy != SHARED_NOISE:
        return study.training.metrics_scale
    # Everything lies in [-1, 1] there: room for the noise, and for a large hospital's patients.
    honest = max(1, count - colluders_withstood(least_threshold(count), count))
    share = study.training.metrics_noise_multiplier * METRICS_SENSITIVITY / math.sqrt(honest)
    patients = 1.5 * study.training.metrics_scale * part
    return NOISE_ROOM * share + max(patients, NOISE_ROOM * share)
