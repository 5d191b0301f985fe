"""Against whom a study's epsilon holds: what its noise rests on.

Where each site adds all of its noise, the figure is the same against everybody, whoever opens its update. Where
the noise is shared (``dp-fedsgd``), h = k - c sites' parts make up the promised noise, and the figure is that of
the sum, as seen by whoever does not know more than c of the parts. More than c sites together are not covered:
t of them can open this site's update, and already from 2t - n on (quorum suite, rule 4) they may have two
different sums opened; either leaves this site's own part, a standard deviation of 1/sqrt(h) of the promised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cipherward.site_agent.ledger.accountant import Accountant
from cipherward.site_agent.ledger.accounting import Gaussian, PrivacyEvent, SampledGaussian, repeated
from cipherward.site_agent.policy.facts import StudyFacts


@dataclass(frozen=True, slots=True)
class Guarantee:
    """What the whole study costs a patient here, at most, against one kind of adversary; by itself, whatever
    was spent before. ``noise``: their standard deviation over the promised one."""

    against: str
    noise: float
    epsilon: float


def guarantees(study: StudyFacts, delta: float, accountant: Accountant) -> list[Guarantee]:
    """The strongest first. Empty where the study has no differential privacy. Raises UsageError for a delta
    that cannot be used."""
    if not study.dp or not study.per_round:
        return []
    if not study.honest:
        return [
            _guarantee(
                "everybody, all other sites and the coordinator together", 1.0, study, delta, accountant
            )
        ]
    least, colluders = study.minimum_cohort, study.colluders
    some = f"{colluders} site{'s' * (colluders != 1)}"
    return [
        _guarantee(
            "whoever takes no part and gets the model",
            math.sqrt(least / study.honest),
            study,
            delta,
            accountant,
        ),
        _guarantee(
            f"up to {some} and the coordinator together (the ledger's figure)", 1.0, study, delta, accountant
        ),
        _guarantee(
            f"more than {some} together, who may get our update by itself",
            1 / math.sqrt(study.honest),
            study,
            delta,
            accountant,
        ),
    ]


def scaled(events: Sequence[PrivacyEvent], factor: float) -> tuple[PrivacyEvent, ...]:
    """The same releases with so many times the noise."""
    return tuple(
        SampledGaussian(event.noise_multiplier * factor, event.sampling_rate, event.steps)
        if isinstance(event, SampledGaussian)
        else Gaussian(event.noise_multiplier * factor, event.count)
        for event in events
    )


def _guarantee(
    against: str, noise: float, study: StudyFacts, delta: float, accountant: Accountant
) -> Guarantee:
    cost = repeated(scaled(study.per_round, noise), max(study.rounds, 1))
    return Guarantee(against, noise, accountant.epsilon(cost, delta))
