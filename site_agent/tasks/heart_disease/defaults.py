"""A study of heart disease that makes sense: its training constants, chosen by measurement.

How they were chosen: docs/accuracy.md, "Choosing the constants". The choice looked at these very patients,
which is fine for public data and a demonstration; a real study chooses its constants on public or synthetic
data, or pays for the search out of its privacy budget.
"""

from __future__ import annotations

from dataclasses import dataclass

from cipherward.site_agent.ledger.accounting import Gaussian, PrivacyEvent, SampledGaussian, calibrate_noise
from cipherward.site_agent.training.constants import DpSgd, PlainSgd


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyDefaults:
    """All but the noise, which follows from (epsilon, delta) over all rounds, metrics included."""

    rounds: int = 5
    epsilon: float = 3.0
    delta: float = 1e-4
    sampling_rate: float = 0.25
    steps: int = 10
    divisor: float = 40.0
    learning_rate: float = 1.0
    clip_norm: float = 1.0
    loss_bound: float = 2.0
    metrics_noise_multiplier: float = 10.0
    metrics_scale: float = 200.0

    def noise_multiplier(self) -> float:
        """The least noise on each step with which one patient's loss over the study is (epsilon, delta)."""
        return calibrate_noise(
            self.epsilon, self.delta, self.sampling_rate, self.steps * self.rounds, [self._metrics_event()]
        )

    def private(self, noise_multiplier: float) -> DpSgd:
        """The round's constants with this noise."""
        return DpSgd(
            sampling_rate=self.sampling_rate,
            steps=self.steps,
            divisor=self.divisor,
            learning_rate=self.learning_rate,
            loss_bound=self.loss_bound,
            metrics_scale=self.metrics_scale,
            clip_norm=self.clip_norm,
            noise_multiplier=noise_multiplier,
            metrics_noise_multiplier=self.metrics_noise_multiplier,
        )

    def plain(self) -> PlainSgd:
        """The same training without privacy, for comparison."""
        return PlainSgd(
            sampling_rate=self.sampling_rate,
            steps=self.steps,
            divisor=self.divisor,
            learning_rate=self.learning_rate,
            loss_bound=self.loss_bound,
            metrics_scale=self.metrics_scale,
        )

    def events(self, noise_multiplier: float) -> list[PrivacyEvent]:
        """What the whole study costs each patient."""
        steps = self.steps * self.rounds
        return [SampledGaussian(noise_multiplier, self.sampling_rate, steps), self._metrics_event()]

    def _metrics_event(self) -> Gaussian:
        return Gaussian(self.metrics_noise_multiplier, self.rounds)


HEART_STUDY = StudyDefaults()
"""What the demo runs."""
