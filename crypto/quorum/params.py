"""The suite's named parameter sets. There are no others: a set that nobody wrote a reason for is an error.

A ring element is a polynomial of Z_q[X]/(X^N + 1), N = 2048, and holds 2048 values, one a coefficient, in units
of 1/D. Keys and errors are centred binomials of 64 coins: popcount of 32 bits minus popcount of 32 bits, so
that every coefficient lies within +-32 and has variance 16.

An update of L values travels as chunks of 32 ring elements, of which the last is cut to whole elements, and
then one chunk of z elements that encode zero (``zero_elements``). Sums have the same layout and the same sizes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cipherward.crypto.suites.base import COARSEST, SuiteParams
from cipherward.errors import FormatError, LimitError, UsageError

SUITE_NAME = "quorum"
LIBRARY = "cipherward-quorum 1"
"""The wire format's version: it is this package's own, and no library's."""
DEGREE = 2048
MOST_SITES = 1000
MAX_LENGTH = 2**32
"""Values of a vector: beyond any model, and some 2^16 chunks."""
ELEMENTS_PER_CHUNK = 32

MOST_NOISE = 32
"""Largest coefficient of a key or error: 64 coins."""
VARIANCE = 16.0
_SIGMAS = 8
_ROUNDING_VARIANCE = 1 / 12
# A 64th of the modulus stays free, so that nothing rests on its last units.
_ROOM = 1 - 1 / 64


@dataclass(frozen=True)
class QuorumSet:
    """What a name stands for. ``residue``: how a residue travels; ``bound``, ``sites``: defaults."""

    name: str
    modulus: int
    residue: str
    bound: float
    sites: int
    justification: str = field(repr=False)


_ESTIMATE = (
    "Estimated with the lattice-estimator (commit 27a581b), and core-SVP computed independently with the same "
    "result. That centred-binomial secrets lose under the sum hint what discrete Gaussians do is a heuristic; "
    "the proofs (Kim, Lee, Seo and Song, CRYPTO 2023) use Gaussians. "
)

Q32 = QuorumSet(
    name="q32",
    modulus=4293918721,
    residue="<u4",
    bound=64.0,
    sites=MOST_SITES,
    justification=(
        "N = 2048, q = 2^32 - 2^20 + 1, secrets and errors centred binomials of 64 coins (sigma 4.0). The opened "
        "sum of keys is a hint: with two honest sites the error that is left has sigma 4.0 / sqrt(2) = 2.83, for "
        "which core-SVP is 214.6 bits classically and 194.8 with a quantum computer, and the MATZOV estimate is "
        "236 bits. " + _ESTIMATE + "With the factor of their theorem (sigma 2.0) 206 and 187 bits are left. "
        "N = 1024 with this q would have 85 and 77, and is refused. An update with |x| <= 64 adds up over 1,000 "
        "sites to at most 2.097e9 < q/2 = 2.147e9."
    ),
)

Q16 = QuorumSet(
    name="q16",
    modulus=61441,
    residue="<u2",
    bound=1.0,
    sites=16,
    justification=(
        "N = 2048, q = 61441 = 15 * 2^12 + 1, secrets and errors centred binomials of 64 coins (sigma 4.0). With "
        "two honest sites the error left after the sum hint has sigma 2.83, for which core-SVP is at least 510 "
        "bits classically and 463 with a quantum computer, and the MATZOV estimate at least 513 bits. "
        + _ESTIMATE
        + "An update with |x| <= 1 adds up over 16 sites to at most 16,904 < q/2 = 30,720. Up to 55 sites at that "
        "bound can be told apart by number: at 56 the unit would be 1/256 and the error more than half an update's "
        "constant."
    ),
)

SETS = {one.name: one for one in (Q32, Q16)}


@dataclass(frozen=True)
class QuorumParams:
    """A set at one bound B, for rosters of up to ``max_sites`` sites. Units of ``bound``: the vector's.

    ``scale`` is D, the units of 1.0 in a coefficient: the largest power of two for which the sum of
    ``max_sites`` updates cannot overflow, whatever values within the bound they hold. ``zero_elements`` is z.
    """

    parameter_set: QuorumSet
    bound: float
    max_sites: int
    scale: int = field(init=False)
    zero_elements: int = field(init=False)

    def __post_init__(self) -> None:
        if not 1 <= self.max_sites <= MOST_SITES:
            raise UsageError(
                f"a roster of {self.max_sites} sites is not usable", why=f"a study has 1 to {MOST_SITES}"
            )
        if not (math.isfinite(self.bound) and self.bound >= 1.0):
            raise UsageError(
                f"the bound {self.bound} is not usable", why="it must be a finite number of at least 1"
            )
        room = self.modulus / 2 * _ROOM / self.max_sites - 0.5 - MOST_NOISE
        coarsest = self._coarsest_scale()
        if room < self.bound * coarsest:
            possible = room / coarsest
            raise UsageError(
                f"the parameter set {self.name} has no room for {self.max_sites} updates bounded by "
                f"{self.bound:g}",
                why="the precision left would not even tell the number of contributors",
                fix=f"Use a bound of at most {math.floor(possible * 100) / 100:g}"
                if possible >= 1
                else f"Use fewer sites, or the parameter set {Q32.name}",
            )
        object.__setattr__(self, "scale", 2 ** math.floor(math.log2(room / self.bound)))
        object.__setattr__(self, "zero_elements", self._zero_elements())

    def _error(self, contributors: int) -> float:
        """In units of a coefficient."""
        return _SIGMAS * math.sqrt(contributors * (VARIANCE + _ROUNDING_VARIANCE))

    def _coarsest_scale(self) -> int:
        """The smallest power of two D with error_bound(max_sites) < COARSEST."""
        return int(2 ** (math.floor(math.log2(self._error(self.max_sites) / COARSEST)) + 1))

    def _zero_elements(self) -> int:
        """The smallest z with (128u + 1)(4b + 1)^z < q^z / 2, u = max_sites: no wrong key in range passes.

        A wrong key differs from the right one by at most 64u a coefficient; for a random a, the chance that
        a * difference is within 2b in every coefficient of z elements, summed over all differences, is
        ((128u + 1)(4b + 1)^z / q^z)^N, below 2^-N.
        """
        sites, narrow, z = self.max_sites, 4 * self.zero_bound(self.max_sites) + 1, 1
        while 2 * (128 * sites + 1) * narrow**z >= self.modulus**z:
            z += 1
        return z

    @property
    def suite(self) -> str:
        """Name of the suite."""
        return SUITE_NAME

    @property
    def name(self) -> str:
        """Name of the set."""
        return self.parameter_set.name

    @property
    def library(self) -> str:
        """Name and version of the wire format."""
        return LIBRARY

    @property
    def justification(self) -> str:
        """Why the set is believed to be secure, with figures and sources."""
        return self.parameter_set.justification

    @property
    def modulus(self) -> int:
        """q."""
        return self.parameter_set.modulus

    @property
    def residue(self) -> np.dtype[np.unsignedinteger]:
        """The type of a residue on the wire, little-endian."""
        return np.dtype(self.parameter_set.residue)

    @property
    def values_per_chunk(self) -> int:
        """Values in every chunk of data but the last."""
        return ELEMENTS_PER_CHUNK * DEGREE

    def key_bound(self, contributors: int) -> int:
        """Largest coefficient that the sum of so many keys can have."""
        return MOST_NOISE * contributors

    def zero_bound(self, contributors: int) -> int:
        """b: a coefficient of the zero chunk's sum is within +-b, 8 standard deviations of its noise."""
        return math.ceil(_SIGMAS * math.sqrt(VARIANCE * contributors))

    def check_sites(self, sites: int) -> None:
        """LimitError for more sites than the scale and the zero chunk are made for."""
        if sites > self.max_sites:
            raise LimitError(
                f"{sites} sites are too many",
                why=f"the parameters are those of at most {self.max_sites} sites",
            )

    def check_contributors(self, contributors: int) -> None:
        """LimitError for none, or more than ``max_sites``."""
        if contributors < 1:
            raise LimitError(f"a sum has no {contributors} contributors", why="it has at least one")
        self.check_sites(contributors)

    def data_chunks(self, length: int) -> int:
        """Chunks that hold values; LimitError if there is no vector of ``length``."""
        if not 1 <= length <= MAX_LENGTH:
            raise LimitError(f"a vector cannot have {length} values", why=f"it has 1 to {MAX_LENGTH}")
        return -(-length // self.values_per_chunk)

    def chunk_count(self, length: int) -> int:
        """Chunks of a vector of ``length`` values, the zero chunk included."""
        return self.data_chunks(length) + 1

    def values_in(self, index: int, length: int) -> int:
        """Values in chunk ``index``, 0 in the zero chunk; LimitError if the vector has no such chunk."""
        if not 0 <= index < self.chunk_count(length):
            raise LimitError(
                f"there is no chunk {index}",
                why=f"a vector of {length} values has {self.chunk_count(length)}",
            )
        return max(0, min(self.values_per_chunk, length - index * self.values_per_chunk))

    def elements_in(self, index: int, length: int) -> int:
        """Ring elements in chunk ``index``; LimitError as ``values_in``."""
        return -(-self.values_in(index, length) // DEGREE) or self.zero_elements

    def upload_chunk_bytes(self, index: int, length: int) -> int:
        """Exact size of an uploaded chunk."""
        return self.elements_in(index, length) * DEGREE * self.residue.itemsize

    def sum_chunk_bytes(self, index: int, length: int) -> int:
        """Exact size of a chunk of the sum: the same."""
        return self.upload_chunk_bytes(index, length)

    def error_bound(self, contributors: int) -> float:
        """Bound on |opened - exact sum|: eight standard deviations of the summed noise and rounding.

        A coordinate exceeds it with probability below 2^-45 (sub-Gaussian: a coefficient's noise is 64 coins).
        Rounding errors are taken as independent and uniform, as usual for CKKS; senders who align theirs can
        add up to contributors / (2D).
        """
        self.check_contributors(contributors)
        return self._error(contributors) / self.scale

    def residues(
        self, chunk: bytes | memoryview, index: int, length: int, what: str
    ) -> NDArray[np.unsignedinteger]:
        """The chunk's residues, a read-only view; FormatError for another size or a residue not below q."""
        size = self.upload_chunk_bytes(index, length)
        if len(chunk) != size:
            raise FormatError(
                f"{what} chunk {index} is refused", why=f"it has {len(chunk)} bytes and must have {size}"
            )
        found = np.frombuffer(chunk, dtype=self.residue)
        if int(found.max()) >= self.modulus:
            position = int(np.argmax(found >= self.modulus))
            raise FormatError(
                f"{what} chunk {index} is refused", why=f"residue {position} is not below the modulus"
            )
        return found

    def check_upload_chunk(self, chunk: bytes | memoryview, index: int, length: int) -> None:
        """FormatError unless the bytes have the exact structure of this chunk."""
        self.residues(chunk, index, length, "upload")

    def check_sum_chunk(self, chunk: bytes, index: int, length: int) -> None:
        """FormatError unless the bytes have the exact structure of this chunk of a sum."""
        self.residues(chunk, index, length, "sum")


def parameters(name: str, bound: float | None = None, sites: int | None = None) -> QuorumParams:
    """The named set, at the study's bound and for rosters of up to ``sites``, or at its defaults.

    UsageError for another name, a bound or number of sites that is not usable, or too little precision left.
    """
    if name not in SETS:
        raise UsageError(
            f"there is no parameter set {name[:80]!r} in the suite {SUITE_NAME}",
            why=f"its sets are {', '.join(SETS)}",
        )
    chosen = SETS[name]
    return QuorumParams(
        chosen,
        chosen.bound if bound is None else float(bound),
        chosen.sites if sites is None else sites,
    )


PARAMETER_SETS = {name: parameters(name) for name in SETS}


def own_params(params: SuiteParams) -> QuorumParams:
    """The same object, if it is this suite's; UsageError otherwise."""
    if not isinstance(params, QuorumParams):
        raise UsageError(f"{params.name} is a parameter set of the suite {params.suite}, not {SUITE_NAME}")
    return params
