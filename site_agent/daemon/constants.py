"""What a signed manifest means at this site: the training's constants, and what a round of it costs in
privacy."""

from __future__ import annotations

from cipherward.crypto.shared_noise import honest_contributors
from cipherward.crypto.strategies import SHARED_NOISE
from cipherward.proto.v1.study_pb2 import Manifest
from cipherward.site_agent.ledger.accounting import Gaussian, PrivacyEvent, SampledGaussian
from cipherward.site_agent.training.constants import DpSgd, PlainSgd, SharedNoise, TrainingConstants


def training_constants(manifest: Manifest, site: str) -> TrainingConstants:
    """The constants of a round at ``site``; raises UsageError for values out of range, or a site not
    named."""
    divisor = next((entry.batch_divisor for entry in manifest.roster if entry.name == site), 0.0)
    if manifest.dp_disabled:
        plain = manifest.plain
        return PlainSgd(
            sampling_rate=plain.sampling_rate,
            steps=plain.steps,
            divisor=divisor,
            learning_rate=plain.learning_rate,
            loss_bound=plain.metrics.loss_bound,
            metrics_scale=plain.metrics.scale,
            proximal=manifest.strategy.proximal,
        )
    dp = manifest.dp
    if manifest.strategy.name == SHARED_NOISE:
        return SharedNoise(
            sampling_rate=dp.sampling_rate,
            steps=dp.steps,
            divisor=divisor,
            learning_rate=dp.learning_rate,
            loss_bound=dp.metrics.loss_bound,
            metrics_scale=dp.metrics.scale,
            clip_norm=dp.clipping_norm,
            noise_multiplier=dp.noise_multiplier,
            metrics_noise_multiplier=dp.metrics.noise_multiplier,
            honest=honest_contributors(manifest),
            noise_range=manifest.strategy.noise_range,
        )
    return DpSgd(
        sampling_rate=dp.sampling_rate,
        steps=dp.steps,
        divisor=divisor,
        learning_rate=dp.learning_rate,
        loss_bound=dp.metrics.loss_bound,
        metrics_scale=dp.metrics.scale,
        clip_norm=dp.clipping_norm,
        noise_multiplier=dp.noise_multiplier,
        metrics_noise_multiplier=dp.metrics.noise_multiplier,
        proximal=manifest.strategy.proximal,
    )


def round_cost(manifest: Manifest) -> tuple[PrivacyEvent, ...]:
    """The releases of one round: DP-SGD's steps, and the metrics. Empty where DP is off: there is no
    bound.

    Where the noise is shared it is that of the worst case that the manifest allows: k contributors, c of whom
    collude and know their own part of it. The sum of the h parts left is what DP-SGD would have added.
    """
    if manifest.dp_disabled:
        return ()
    dp = manifest.dp
    return (
        SampledGaussian(dp.noise_multiplier, dp.sampling_rate, dp.steps),
        Gaussian(dp.metrics.noise_multiplier),
    )
