"""Reed-Solomon codes over Z_p, p = 2**31 - 1: what Shamir's scheme computes with.

Shares are the values of a polynomial of degree below t at the points 1, 2, ..., n: a Reed-Solomon codeword.
So dealing is encoding, rebuilding is interpolating, and finding wrong answers is decoding.

Residues are ``uint64`` arrays with values below p. Reduction is by folding, never by division: p is a Mersenne
prime, and the time that a processor takes to divide can depend on the values.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PRIME = (1 << 31) - 1
MAX_TERMS = 2048
"""Most terms of a dot product in ``product``."""

Residues = NDArray[np.uint64]

_P = np.uint64(PRIME)
_BITS = np.uint64(31)
_LIMB_BITS = 11
_LIMB = np.uint64((1 << _LIMB_BITS) - 1)
_ROWS = 128
"""Rows of a product made at a time: with 2048 columns its scratch memory is some 10 MB."""


def residues(integers: NDArray[np.int64]) -> Residues:
    """Integers of absolute value up to p, as residues of the same shape."""
    return reduced((integers + PRIME).astype(np.uint64))


def centred(values: NDArray[np.unsignedinteger]) -> NDArray[np.int64]:
    """The representatives of residues in [-(p - 1)/2, (p - 1)/2], int64 of the same shape."""
    signed = values.astype(np.int64)
    return signed - PRIME * (signed > PRIME // 2)


def reduced(values: NDArray[np.uint64]) -> Residues:
    """``values`` mod p, for any uint64 values."""
    folded: Residues = values
    for _ in range(3):  # below 2**34, then below 2**31 + 8, then at most p
        folded = (folded & _P) + (folded >> _BITS)
    folded -= _P * (folded == _P)
    return folded


def product(left: Residues, right: NDArray[np.unsignedinteger]) -> NDArray[np.uint32]:
    """``left @ right`` mod p. Shapes (rows, terms) and (terms, columns), terms <= 2048; uint32 below p.

    Exact, although BLAS does it in double precision: ``left`` goes in as three limbs of 11 bits, so that
    every sum has at most 2**11 terms below 2**11 * 2**31 and stays within 2**53, in whatever order it is added.
    """
    operand = right.astype(np.float64)
    out = np.empty((left.shape[0], right.shape[1]), dtype=np.uint32)
    for start in range(0, left.shape[0], _ROWS):
        rows = left[start : start + _ROWS]
        total: Residues = np.zeros((rows.shape[0], right.shape[1]), dtype=np.uint64)
        for limb in (2, 1, 0):
            part = ((rows >> np.uint64(limb * _LIMB_BITS)) & _LIMB).astype(np.float64)
            total = reduced((total << np.uint64(_LIMB_BITS)) + (part @ operand).astype(np.uint64))
        out[start : start + _ROWS] = total
    return out


def powers(points: NDArray[np.int64], count: int) -> Residues:
    """x**0, ..., x**(count - 1) for each point. Shape (points, count)."""
    base = points.astype(np.uint64)
    out = np.ones((len(points), count), dtype=np.uint64)
    for exponent in range(1, count):
        out[:, exponent] = reduced(out[:, exponent - 1] * base)
    return out


def lagrange(base: NDArray[np.int64], targets: NDArray[np.int64]) -> Residues:
    """The matrix that takes a polynomial's values at ``base`` to its values at ``targets``.

    Shape (targets, base); exact for degrees below ``len(base)``. All points are distinct, none of the targets
    is among the base, and no two differ by p. Lagrange's formula in its barycentric form (Berrut and Trefethen,
    "Barycentric Lagrange interpolation", SIAM Review 2004, section 3).
    """
    gaps = targets[:, None] - base[None, :]
    magnitude = np.abs(gaps)
    inverse = _inverses(np.arange(1, magnitude.max() + 1, dtype=np.uint64))[magnitude - 1]
    inverse = np.where(gaps < 0, _P - inverse, inverse)
    rows = reduced(_row_products(residues(gaps))[:, None] * _barycentric(base)[None, :])
    return reduced(rows * inverse)


def wrong_positions(points: NDArray[np.int64], word: Residues, dimension: int) -> NDArray[np.bool_] | None:
    """Where ``word`` differs from the one codeword within half the minimum distance, or None if there is none.

    ``word``: shape (m,), values at the m distinct ``points``; ``dimension``: t, a codeword is a polynomial of
    degree below t. Finds up to floor((m - t)/2) wrong positions. Gao, "A new algorithm for decoding
    Reed-Solomon codes" (Communications, Information and Network Security, 2003), algorithm 1.
    """
    length = len(points)
    vanishing = _vanishing(points)
    last, remainder = vanishing, _interpolation(points, word, vanishing)
    last_cofactor, cofactor = np.zeros(0, dtype=np.uint64), np.ones(1, dtype=np.uint64)
    while 2 * (len(remainder) - 1) >= length + dimension:
        quotient, rest = _divided(last, remainder)
        last, remainder = remainder, rest
        last_cofactor, cofactor = cofactor, _minus_product(last_cofactor, quotient, cofactor)
    codeword, _ = _divided(remainder, cofactor)
    if len(codeword) > dimension:
        return None
    wrong = _values(codeword, points) != word
    return wrong if np.count_nonzero(wrong) <= (length - dimension) // 2 else None


def _barycentric(points: NDArray[np.int64]) -> Residues:
    """1 / prod over k != i of (x_i - x_k). Shape (points,)."""
    gaps = points[:, None] - points[None, :]
    np.fill_diagonal(gaps, 1)
    return _inverses(_row_products(residues(gaps)))


def _row_products(matrix: Residues) -> Residues:
    """The product of each row, by halves. Shape (rows,)."""
    while matrix.shape[1] > 1:
        half = matrix.shape[1] // 2
        pairs = reduced(matrix[:, :half] * matrix[:, half : 2 * half])
        matrix = np.concatenate([pairs, matrix[:, 2 * half :]], axis=1)
    return matrix[:, 0]


def _inverses(values: Residues) -> Residues:
    """1/v for each (none is 0). Shape (values,). Of points only: public, so the time does not matter."""
    return np.array([pow(int(value), -1, PRIME) for value in values], dtype=np.uint64)


# Polynomials: uint64 arrays, constant term first, without leading zeros; the zero polynomial is empty.


def _trimmed(polynomial: Residues) -> Residues:
    nonzero = np.flatnonzero(polynomial)
    return polynomial[: nonzero[-1] + 1] if len(nonzero) else polynomial[:0]


def _vanishing(points: NDArray[np.int64]) -> Residues:
    """The product of all (x - x_i)."""
    out = np.ones(1, dtype=np.uint64)
    for negated in residues(-points):
        out = reduced(np.append(np.uint64(0), out) + np.append(out * negated, np.uint64(0)))
    return out


def _interpolation(points: NDArray[np.int64], word: Residues, vanishing: Residues) -> Residues:
    """The polynomial with ``word`` as its values: the sum of word_i w_i vanishing(x)/(x - x_i)."""
    scale = reduced(word * _barycentric(points))
    base = points.astype(np.uint64)
    out = np.zeros(len(points), dtype=np.uint64)
    # Divides by all (x - x_i) at once (Horner's rule), from the highest coefficient down.
    quotients = np.ones(len(points), dtype=np.uint64)
    for degree in range(len(points) - 1, -1, -1):
        out[degree] = reduced(scale * quotients).sum() % _P
        quotients = reduced(quotients * base + vanishing[degree])
    return _trimmed(out)


def _divided(dividend: Residues, divisor: Residues) -> tuple[Residues, Residues]:
    """Quotient and remainder. The divisor is not zero."""
    rest = dividend.copy()
    quotient = np.zeros(max(len(dividend) - len(divisor) + 1, 0), dtype=np.uint64)
    inverse = np.uint64(pow(int(divisor[-1]), -1, PRIME))
    for shift in range(len(quotient) - 1, -1, -1):
        window = rest[shift : shift + len(divisor)]
        quotient[shift] = factor = window[-1] * inverse % _P
        window[:] = reduced(window + (_P - factor) * divisor)
    return _trimmed(quotient), _trimmed(rest)


def _minus_product(start: Residues, left: Residues, right: Residues) -> Residues:
    """start - left * right."""
    out = np.zeros(max(len(start), len(left) + len(right) - 1), dtype=np.uint64)
    out[: len(start)] = start
    for shift, factor in enumerate(left):
        window = out[shift : shift + len(right)]
        window[:] = reduced(window + (_P - factor) * right)
    return _trimmed(out)


def _values(polynomial: Residues, points: NDArray[np.int64]) -> Residues:
    """Its values at the points."""
    base = points.astype(np.uint64)
    out = np.zeros(len(points), dtype=np.uint64)
    for coefficient in polynomial[::-1]:
        out = reduced(out * base + coefficient)
    return out
