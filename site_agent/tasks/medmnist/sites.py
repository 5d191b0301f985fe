"""Which patients of a file belong to one site, for studies on one machine. A patient's site follows from the
patient's own id and labels, the seed and the number of sites: whoever else is in the file moves nobody, and the same
patient is at the same site in training and test, on every machine."""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from cipherward.errors import UsageError

MAX_SITES = 1024
ALPHA = (0.01, 1000.0)
"""Least and most: below, nearly every class is at one site; above, the split is IID."""


@dataclass(frozen=True, slots=True)
class Whole:
    """The file is one site's."""


@dataclass(frozen=True, slots=True)
class Even:
    """``split=iid``: site ``site`` (1..of) of ``of``, each patient at any of them with equal chance."""

    site: int
    of: int
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.site, self.of)

    def has(self, patient: str, label: int) -> bool:
        """Whether the patient is at this site; ``label`` does not matter."""
        del label
        return _number(f"iid/{self.seed}", patient) * self.of >> 64 == self.site - 1


@dataclass(frozen=True, slots=True)
class LabelSkew:
    """``split=label``: each class is spread over the sites in shares from a Dirichlet distribution with parameter
    ``alpha`` (Hsu, Qi and Brown 2019, arXiv 1909.06335): the smaller, the more do the sites differ."""

    site: int
    of: int
    alpha: float
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.site, self.of)
        if not ALPHA[0] <= self.alpha <= ALPHA[1]:
            raise UsageError(f"alpha={self.alpha} is not between {ALPHA[0]} and {ALPHA[1]}")

    def has(self, patient: str, label: int) -> bool:
        """Whether the patient, whose class is ``label``, is at this site."""
        ends = _ends(self.of, self.alpha, self.seed, label)
        place = _number(f"label/{self.seed}", patient) / 2.0**64
        return min(bisect_right(ends, place), self.of - 1) == self.site - 1


@dataclass(frozen=True, slots=True)
class Column:
    """``split=column``: the patients whose records name ``site`` in the file's column of sites."""

    site: str


Choice = Whole | Even | LabelSkew | Column


def column_of(records: Mapping[str, set[str]]) -> dict[str, str]:
    """The one site of each patient. Raises UsageError if somebody's records name several."""
    several = sum(len(named) > 1 for named in records.values())
    if several:
        raise UsageError(
            f"{several} patients have records at several sites",
            why="a patient at two sites would be protected by each of them alone",
            fix="Give every patient one site in the column",
        )
    return {patient: next(iter(named)) for patient, named in records.items()}


def _check(site: int, of: int) -> None:
    if not 1 <= of <= MAX_SITES or not 1 <= site <= of:
        raise UsageError(
            f"there is no site {site} of {of}", fix=f"Use site=1..N and of=N, N at most {MAX_SITES}"
        )


def _number(purpose: str, text: str) -> int:
    """64 bits of a hash."""
    return int.from_bytes(hashlib.sha256(f"medmnist/{purpose}/{text}".encode()).digest()[:8], "big")


@lru_cache(maxsize=64)
def _ends(of: int, alpha: float, seed: int, label: int) -> tuple[float, ...]:
    """Where each site's share of a class ends, in [0, 1]: sums of a Dirichlet sample made from hashes."""
    from scipy.special import gammaincinv

    logs = []
    for site in range(of):
        first, second = (
            (_number(f"share/{seed}/{alpha!r}/{label}/{draw}", str(site)) + 0.5) / 2.0**64 for draw in (1, 2)
        )
        # Gamma(alpha) = Gamma(alpha + 1) x U^(1 / alpha); by logarithms, as most of it would be 0 for a small alpha.
        logs.append(math.log(float(gammaincinv(alpha + 1, first))) + math.log(second) / alpha)
    top = max(logs)
    shares = [math.exp(one - top) for one in logs]
    total, ends = math.fsum(shares), []
    for site in range(of):
        ends.append(math.fsum(shares[: site + 1]) / total)
    return tuple(ends)
