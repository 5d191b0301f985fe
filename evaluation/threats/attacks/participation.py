"""What a participation matrix gives away: sums over small groups, from sums over large ones.

So, Ali, Guler, Jiao and Avestimehr, "Securing secure aggregation: mitigating multi-round privacy leakage in federated
learning", AAAI 2023; Lam et al., "Gradient disaggregation", ICML 2021. Row r of the matrix says who is in U of round
r. A combination of the rounds' sums that is zero outside a group is a weighted sum of that group's updates alone. If
sites' updates were the same in all rounds, that is what the attacker learns; differential privacy counts it already,
as each round's release is charged.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.int64]


def smallest_group(matrix: Matrix) -> tuple[int, ...]:
    """The smallest group of sites that some combination of rounds isolates, the first in order if there are several.

    ``matrix``: (rounds, sites) of 0 and 1, at most some 16 sites: groups are tried by size. A group is isolated if
    leaving its columns out loses rank: then a combination of rows vanishes on all other columns and not on it.
    """
    rank = np.linalg.matrix_rank(matrix)
    sites = matrix.shape[1]
    for size in range(1, sites):
        for group in combinations(range(sites), size):
            if np.linalg.matrix_rank(np.delete(matrix, group, axis=1)) < rank:
                return group
    return tuple(range(sites))


def single_sites(matrix: Matrix) -> list[int]:
    """The sites that are isolated alone."""
    rank = np.linalg.matrix_rank(matrix)
    return [
        site
        for site in range(matrix.shape[1])
        if np.linalg.matrix_rank(np.delete(matrix, site, axis=1)) < rank
    ]


def disaggregate(matrix: Matrix, sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each site's update, (sites, P), as least squares finds it from the rounds' sums, (rounds, P), if it had been the
    same in all rounds."""
    found: NDArray[np.float64] = np.linalg.pinv(matrix.astype(np.float64)) @ sums
    return found


def random_rounds(sites: int, least: int, rounds: int, availability: float, seed: int) -> Matrix:
    """Who took part, (rounds, sites): each site is there with a probability, and a round has at least ``least``."""
    rng = np.random.default_rng(seed)
    made: list[NDArray[np.bool_]] = []
    while len(made) < rounds:
        present = rng.random(sites) < availability
        if present.sum() >= least:
            made.append(present)
    return np.stack(made).astype(np.int64)
