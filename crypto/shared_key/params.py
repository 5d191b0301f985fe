"""The suite's named parameter sets. There are no others: a set that nobody wrote a reason for is an error."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version

from cipherward.crypto.shared_key import chunks
from cipherward.crypto.suites.base import SuiteParams
from cipherward.errors import LimitError, UsageError

SUITE_NAME = "shared-key"
MOST_SITES = 1000
MAX_LENGTH = 2**32
"""Values of a vector: beyond any model this suite is for, and within the header's 32-bit chunk index."""

# SEAL draws errors from a centred binomial with 21 + 21 coins (clipped nowhere): |e| <= 21, variance 10.5.
# Its sub-Gaussian variance proxy is 10.5 as well (42 independent terms of +-1/2; Hoeffding).
_NOISE_MAX = 21
_NOISE_PROXY = 10.5
# Rounding m to integers adds at most 1/2 a coefficient: proxy 1/4, if taken as independent and centred.
_ROUNDING_PROXY = 0.25
# 2 * 2^32 tails (coordinates of the longest vector, both signs), together at most 2^-40.
_TAIL = math.sqrt(2 * math.log(2.0 * MAX_LENGTH * 2.0**40))
# Double-precision FFTs of SEAL's encoder and decoder: 2^7 units in the last place of the largest value.
_FLOAT_ERROR = 2.0**-46


@dataclass(frozen=True)
class SharedKeyParams:
    """A CKKS set without multiplications, at one bound B. Units of ``bound``: those of the vector.

    ``moduli``: the primes of a ciphertext; ``special_modulus``: SEAL's key-switching prime, which only the
    key has (0 if the set has none); ``values_per_slot``: 2 if the imaginary part carries a value as well.
    """

    name: str
    set_id: int
    degree: int
    moduli: tuple[int, ...]
    special_modulus: int
    scale_bits: int
    values_per_slot: int
    ciphertexts_per_chunk: int
    bound: float
    justification: str

    def __post_init__(self) -> None:
        if not (math.isfinite(self.bound) and self.bound >= 1.0):
            raise UsageError(
                f"the bound {self.bound} is not usable", why="it must be a finite number of at least 1"
            )
        if self.max_sites < 2:
            raise UsageError(
                f"the bound {self.bound:g} is too large for the parameter set {self.name}",
                why="the sum of two such updates could exceed the ciphertext modulus",
                fix=f"Use at most {self._largest_bound(2):.4g}",
            )

    @property
    def suite(self) -> str:
        """Name of the suite."""
        return SUITE_NAME

    @property
    def library(self) -> str:
        """Name and exact installed version of the code whose formats and arithmetic are used."""
        return f"tenseal {version('tenseal')}"

    @property
    def scale(self) -> float:
        """Delta: units of the plaintext polynomial for 1.0."""
        return float(2**self.scale_bits)

    @property
    def key_moduli(self) -> tuple[int, ...]:
        """Primes of the secret key."""
        return (*self.moduli, self.special_modulus) if self.special_modulus else self.moduli

    @property
    def values_per_ciphertext(self) -> int:
        """Values that one ciphertext holds: N/2 slots."""
        return self.degree // 2 * self.values_per_slot

    @property
    def values_per_chunk(self) -> int:
        """Values in every chunk but the last."""
        return self.ciphertexts_per_chunk * self.values_per_ciphertext

    def _coefficient(self, bound: float) -> float:
        # A coefficient is the mean over all N roots of z * conj(root) * Delta, so |m_j| <= Delta * max|z|,
        # attained by constant vectors. A slot of two values has |z| <= sqrt(2) * B.
        return math.sqrt(self.values_per_slot) * bound * self.scale + 0.5 + _NOISE_MAX

    def _largest_bound(self, sites: int) -> float:
        room = math.prod(self.moduli) // 2 / sites - 0.5 - _NOISE_MAX
        return room / (math.sqrt(self.values_per_slot) * self.scale)

    @cached_property
    def max_sites(self) -> int:
        """Most contributors whose sum stays below q/2 in the worst case, and at most 1,000."""
        return min(MOST_SITES, int(math.prod(self.moduli) // 2 / self._coefficient(self.bound)))

    def with_bound(self, bound: float) -> SharedKeyParams:
        """The same set at another bound; UsageError if not even two updates could be added."""
        return replace(self, bound=float(bound))

    def check_sites(self, sites: int) -> None:
        """LimitError if the sum over so many sites could overflow at this bound."""
        if sites > MOST_SITES:
            raise LimitError(f"{sites} sites are too many", why=f"a study has at most {MOST_SITES}")
        if sites > self.max_sites:
            raise LimitError(
                f"the sum of {sites} updates bounded by {self.bound:g} does not fit the set {self.name}",
                why=f"its modulus has room for {self.max_sites}",
                fix=f"Use a bound of at most {self._largest_bound(sites):.4g}",
            )

    def _check_contributors(self, contributors: int) -> None:
        if contributors < 1:
            raise LimitError(f"a sum has no {contributors} contributors", why="it has at least one")
        self.check_sites(contributors)

    def _check_length(self, length: int) -> None:
        if not 1 <= length <= MAX_LENGTH:
            raise LimitError(f"a vector cannot have {length} values", why=f"it has 1 to {MAX_LENGTH}")

    def chunk_count(self, length: int) -> int:
        """Chunks of a vector of ``length`` values; LimitError if there is no such vector."""
        self._check_length(length)
        return -(-length // self.values_per_chunk)

    def values_in(self, index: int, length: int) -> int:
        """Values in chunk ``index``; LimitError if the vector has no such chunk."""
        if not 0 <= index < self.chunk_count(length):
            raise LimitError(
                f"there is no chunk {index}",
                why=f"a vector of {length} values has {self.chunk_count(length)}",
            )
        return min(self.values_per_chunk, length - index * self.values_per_chunk)

    def ciphertexts_in(self, index: int, length: int) -> int:
        """Ciphertexts in chunk ``index``, the last filled up with zeros; LimitError as ``values_in``."""
        return -(-self.values_in(index, length) // self.values_per_ciphertext)

    def upload_chunk_bytes(self, index: int, length: int) -> int:
        """Exact size of an uploaded chunk."""
        return chunks.upload_bytes(self, self.ciphertexts_in(index, length))

    def sum_chunk_bytes(self, index: int, length: int) -> int:
        """Exact size of a chunk of the sum."""
        return chunks.sum_bytes(self, self.ciphertexts_in(index, length))

    def error_bound(self, contributors: int) -> float:
        """Bound on |opened - exact sum| in every coordinate, failing with probability below 2^-40 a vector.

        A coordinate's error is sum_j (e_j + r_j) cos(pi j (2k+1) / N) / Delta (or sin) over the N
        coefficients, and sum_j cos^2 = N/2. Errors e_j are sub-Gaussian and independent: proven. Rounding
        errors r_j are taken as independent (the usual heuristic of CKKS); a sender who picks values to align
        them with one coordinate can add up to N / (pi Delta) there.
        """
        self._check_contributors(contributors)
        proxy = contributors * self.degree / 2 * (_NOISE_PROXY + _ROUNDING_PROXY)
        return _TAIL * math.sqrt(proxy) / self.scale + contributors * self.bound * _FLOAT_ERROR

    def check_upload_chunk(self, chunk: bytes | memoryview, index: int, length: int) -> None:
        """FormatError unless the bytes have the exact structure of this chunk. No native code."""
        chunks.parse_upload(self, chunk, index, length)

    def check_sum_chunk(self, chunk: bytes, index: int, length: int) -> None:
        """FormatError unless the bytes have the exact structure of this chunk of a sum. No native code."""
        chunks.parse_sum(self, chunk, index, length)


SEAL_4096_48 = SharedKeyParams(
    name="seal-4096-48",
    set_id=1,
    degree=4096,
    moduli=(281474976694273,),
    special_modulus=0,
    scale_bits=30,
    values_per_slot=2,
    ciphertexts_per_chunk=16,
    bound=64.0,
    justification=(
        "HomomorphicEncryption.org security standard (Albrecht et al., 2018), table 1, and SEAL's own limit: "
        "ternary secret, error deviation about 3.2, N = 4096 has 128-bit classical security up to a modulus "
        "of 109 bits. The key never meets a modulus above 48 bits: there is no key-switching prime and no "
        "public, relinearisation or rotation key. Nothing is multiplied, so one prime is enough. A "
        "coefficient of the sum of 1,000 updates with |x| <= 64 is at most 9.72e13 < q/2 = 1.41e14."
    ),
)

FLARE_8192 = SharedKeyParams(
    name="flare-8192",
    set_id=2,
    degree=8192,
    moduli=(1152921504606830593, 1099510890497),
    special_modulus=1099511480321,
    scale_bits=40,
    values_per_slot=1,
    ciphertexts_per_chunk=4,
    bound=64.0,
    justification=(
        "The set of NVIDIA FLARE's CKKS examples (N = 8192, primes of 60, 40 and 40 bits, scale 2^40, real "
        "slots only), for comparison and for tools made for it. HomomorphicEncryption.org security standard "
        "(Albrecht et al., 2018), table 1: ternary secret, N = 8192 has 128-bit classical security up to a "
        "modulus of 218 bits; the key's modulus has 140. A coefficient of the sum of 1,000 updates with "
        "|x| <= 64 is at most 7.04e16 < q/2 = 6.34e29."
    ),
)

PARAMETER_SETS = {params.name: params for params in (SEAL_4096_48, FLARE_8192)}


def parameters(name: str, bound: float | None = None) -> SharedKeyParams:
    """The named set, at the study's bound if one is given; UsageError for any other name or bound."""
    if name not in PARAMETER_SETS:
        raise UsageError(
            f"there is no parameter set {name[:80]!r} in the suite {SUITE_NAME}",
            why=f"its sets are {', '.join(PARAMETER_SETS)}",
        )
    params = PARAMETER_SETS[name]
    return params if bound is None else params.with_bound(bound)


def own_params(params: SuiteParams) -> SharedKeyParams:
    """The same object, if it is this suite's; UsageError otherwise."""
    if not isinstance(params, SharedKeyParams):
        raise UsageError(f"{params.name} is a parameter set of the suite {params.suite}, not {SUITE_NAME}")
    return params
