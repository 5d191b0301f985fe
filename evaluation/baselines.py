"""What federated training is compared with: each hospital alone, all patients in one place, with privacy and
without. Every arm runs the product's own training code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cipherward.crypto.randomness import KeyStream
from cipherward.errors import UsageError
from cipherward.site_agent.tasks.base import Records, Task
from cipherward.site_agent.training import metrics, weights
from cipherward.site_agent.training.constants import SgdConstants
from cipherward.site_agent.training.dpsgd import Training

Weights = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SiteData:
    """One hospital: its name and the patients it trains and tests on."""

    name: str
    train: Records
    test: Records


def alone(task: Task, site: SiteData, start: Weights, rounds: int, constants: SgdConstants) -> Weights:
    """One hospital trains by itself. Returns the final weights, (P,)."""
    training, model = Training(task, site.train), start
    for _ in range(rounds):
        model = model + training.round(model, constants, KeyStream()).update
    return model


def pooled(
    task: Task, sites: Sequence[SiteData], start: Weights, rounds: int, constants: SgdConstants
) -> Weights:
    """All patients in one place: one noise in the place of one a site, and the divisor of all sites together.

    What federated training would be without hospitals that keep their patients to themselves. Raises UsageError for
    no sites.
    """
    if not sites:
        raise UsageError("there are no sites to pool")
    together = SiteData("pooled", concatenated([(site.name, site.train) for site in sites]), sites[0].test)
    return alone(task, together, start, rounds, replace(constants, divisor=constants.divisor * len(sites)))


def evaluate(task: Task, vector: Weights, records: Records) -> metrics.Evaluation:
    """The model with these weights on those records."""
    model = weights.build(task)
    weights.assign(model, vector)
    return metrics.evaluate(task, model, records)


def concatenated(parts: Sequence[tuple[str, Records]]) -> Records:
    """Several hospitals' records, by name: two may give the same id to different patients."""
    import torch

    return Records(
        features=torch.cat([records.features for _, records in parts]),
        labels=torch.cat([records.labels for _, records in parts]),
        patient_ids=tuple(f"{name}/{patient}" for name, records in parts for patient in records.patient_ids),
    )
