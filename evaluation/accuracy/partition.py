"""Training patients dealt to simulated hospitals, by a seed, as the imaging tasks' sources deal them."""

from __future__ import annotations

from enum import StrEnum
from itertools import count

import numpy as np
from numpy.typing import NDArray

from cipherward.errors import UsageError
from cipherward.site_agent.tasks.medmnist.sites import Even, LabelSkew

ALPHA = 0.5
"""Of the Dirichlet distribution: most hospitals have several times as many of one label, for its share of all, as of
the other, and sizes differ by a factor of ten and more."""
_NEXT, _TRIES = 1000, 200


class Partition(StrEnum):
    """How hospitals differ."""

    IID = "iid"
    """Each patient is at any of them with equal chance."""
    LABEL_SKEW = "label-skew"
    """Each label's patients are shared out by Dirichlet(ALPHA) (Hsu, Qi and Brown 2019), so that sizes and shares of
    labels differ."""

    def choice(self, site: int, sites: int, seed: int) -> Even | LabelSkew:
        """As the imaging tasks know it; ``site`` counts from 1."""
        return Even(site, sites, seed) if self is Partition.IID else LabelSkew(site, sites, ALPHA, seed)

    def options(self, site: int, sites: int, seed: int) -> str:
        """The same as the options of a source."""
        where = f"site={site}&of={sites}&seed={seed}"
        return where if self is Partition.IID else f"{where}&split=label&alpha={ALPHA}"


def deal(
    patients: tuple[str, ...], labels: NDArray[np.int64], sites: int, partition: Partition, seed: int
) -> tuple[list[NDArray[np.int64]], int]:
    """For each site the rows of its patients, and the seed of the draw: the first of ``seed``, ``seed`` + 1000, ...
    that leaves no site without patients, for such a hospital would not take part.

    ``patients``: the id of each row's, shape (n,). A patient's label is the largest of the rows'. Raises UsageError if
    200 draws leave a site empty.
    """
    highest: dict[str, int] = {}
    for patient, label in zip(patients, labels.tolist(), strict=True):
        highest[patient] = max(label, highest.get(patient, 0))
    for draw in count(seed, _NEXT):
        if draw > seed + _NEXT * _TRIES:
            break
        choices = [partition.choice(site, sites, draw) for site in range(1, sites + 1)]
        site_of = {
            patient: next(place for place, one in enumerate(choices) if one.has(patient, label))
            for patient, label in highest.items()
        }
        if len(set(site_of.values())) == sites:
            row_sites = np.array([site_of[patient] for patient in patients])
            return [np.flatnonzero(row_sites == place) for place in range(sites)], draw
    raise UsageError(f"{len(highest)} patients leave one of {sites} sites empty", fix="Use fewer sites")
