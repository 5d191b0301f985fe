"""What federated training is compared with: each hospital alone, all patients in one place, with privacy and
without. Every arm runs the product's own training code on the same constants; the federated arm leaves out
the encryption, whose error is below 1e-6 of an update (``cipherward bench crypto``)."""

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
from cipherward.site_agent.training.dpsgd import train

Weights = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SiteData:
    """One hospital: its name and the patients it trains and tests on."""

    name: str
    train: Records
    test: Records


def federated(
    task: Task, sites: Sequence[SiteData], start: Weights, rounds: int, constants: SgdConstants
) -> Weights:
    """Federated averaging with equal weights, each site adding its own noise. Returns the final weights,
    (P,).

    Raises UsageError for no sites.
    """
    if not sites:
        raise UsageError("a federated run needs at least one site")
    model = start
    for _ in range(rounds):
        updates = [train(task, site.train, model, constants, KeyStream()).update for site in sites]
        mean = np.sum(updates, axis=0, dtype=np.float64) / len(updates)
        model = (model + mean).astype(np.float32)
    return model


def alone(task: Task, site: SiteData, start: Weights, rounds: int, constants: SgdConstants) -> Weights:
    """One hospital trains by itself, with the same privacy, for as many steps."""
    return federated(task, [site], start, rounds, constants)


def pooled(
    task: Task, sites: Sequence[SiteData], start: Weights, rounds: int, constants: SgdConstants
) -> Weights:
    """All patients in one place: one noise in the place of one a site, and the divisor of all sites together.

    What federated training would be without hospitals that keep their patients to themselves.
    """
    together = SiteData("pooled", _concatenate(sites), sites[0].test)
    return federated(
        task, [together], start, rounds, replace(constants, divisor=constants.divisor * len(sites))
    )


def evaluate(task: Task, vector: Weights, records: Records) -> metrics.Evaluation:
    """The model with these weights on those records."""
    model = weights.build(task)
    weights.assign(model, vector)
    return metrics.evaluate(task, model, records)


def _concatenate(sites: Sequence[SiteData]) -> Records:
    import torch

    return Records(
        features=torch.cat([site.train.features for site in sites]),
        labels=torch.cat([site.train.labels for site in sites]),
        # Two hospitals may give the same id to different patients.
        patient_ids=tuple(f"{site.name}/{patient}" for site in sites for patient in site.train.patient_ids),
    )
