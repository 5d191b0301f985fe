"""Exact products in Z_q[X]/(X^N + 1), N = 2048, by floating-point FFT. For numpy arrays and torch tensors alike.

**Folded order.** A polynomial's coefficients stand in the order c_0, c_1024, c_1, c_1025, ...: two neighbours are
the real and imaginary part of a coefficient of its residue modulo X^1024 - i, which determines a real
polynomial. So no array is ever rearranged, and a product takes transforms of half the length (Bernstein,
"Multidigit multiplication for mathematicians", 2001, section 9, the "right-angle" trick). With X = zeta Y,
zeta = exp(i pi / N), it is a cyclic convolution of length 1024.

**Exactness.** The product's coefficients are integers; rounding gives them exactly if the computed ones are off
by less than 1/2. Percival ("Rapid multiplication modulo the sum and difference of highly composite numbers",
Math. Comp. 72, 2003, theorem 5.1) bounds the error of a cyclic convolution of length 2^n in every entry by
  |x| |y| ((1 + eps)^(3n) (1 + eps sqrt5)^(3n+1) (1 + beta)^(3n) - 1),
|.| the 2-norm, eps = 2^-53, beta the error of the roots of unity. Here n = 10; weighting x, y and the product with
powers of zeta adds three complex multiplications; with beta <= 4 eps (tables made in double precision) and
weights off by up to 6 eps that is below 250 eps |x| |y|. Larger radices do fewer multiplications and no more.

- **One transform.** A public polynomial is uniform, so |a| <= 0.7 sqrt(N) q/2 = 6.8e10 at q = 4293918721, but for a
  probability of 2^-144 (Hoeffding: the mean of N values of (2a/q)^2, expected 1/3, exceeds 0.49). With one fresh
  key, |s| = 181 with a standard deviation of 3, the bound is 0.34.
- **Two limbs.** For larger keys a is split into two limbs of 16 bits, |limb| <= sqrt(N) 2^15 whatever a is. The
  bound is 0.06 at |s_j| = 32,000 in every coefficient, the largest sum of keys that 1,000 sites can have.

``Multiplier.limbs`` says which is used; a key for which neither bound is below 0.4 is refused. Largest error
seen: 0.002. float32 would have bounds 2^29 times as large, so it is never used.
"""

from __future__ import annotations

import math
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cipherward.crypto.quorum.params import DEGREE
from cipherward.errors import LimitError

HALF = DEGREE // 2
_EPSILON = 2.0**-53
_LARGEST_ERROR = 0.4
_LIMB = 1 << 16
_ROOT = math.sqrt(DEGREE)


def fold(natural: ArrayLike) -> NDArray[Any]:
    """Coefficients c_0, c_1, ... in the last axis, put into folded order."""
    array = np.asarray(natural)
    return np.stack([array[..., :HALF], array[..., HALF:]], axis=-1).reshape(array.shape)


def unfold(folded: ArrayLike) -> NDArray[Any]:
    """The inverse of ``fold``."""
    array = np.asarray(folded)
    return np.concatenate([array[..., 0::2], array[..., 1::2]], axis=-1)


def product_error(secret_norm: float, norm: float) -> float:
    """The bound above for a key and a polynomial with these 2-norms."""
    return 250 * _EPSILON * secret_norm * norm


class Multiplier:
    """Multiplication with one secret polynomial, transformed once. Immutable: threads may share it.

    ``xp`` is numpy or torch, ``device`` what its arrays live on. It has no repr of its content and does not
    pickle.
    """

    __slots__ = ("_device", "_inverse", "_secret", "_twist", "_xp", "limbs", "modulus")

    def __init__(self, secret: NDArray[np.int64], modulus: int, xp: Any = np, device: Any = "cpu") -> None:
        """``secret``: int64 of shape (2048,), folded. LimitError if it is too large for exact products."""
        norm = float(np.linalg.norm(secret.astype(np.float64)))
        self.modulus = modulus
        if product_error(norm, 0.7 * _ROOT * modulus / 2) < _LARGEST_ERROR:
            self.limbs = 1
        elif product_error(norm, _ROOT * _LIMB / 2) < _LARGEST_ERROR:
            self.limbs = 2
        else:
            raise LimitError("the key is too large for exact products", why=f"its norm is {norm:.4g}")
        self._xp, self._device = xp, device
        angles = np.arange(HALF) * (np.pi / DEGREE)
        twist = np.cos(angles) + 1j * np.sin(angles)
        self._twist = self._array(twist)
        self._inverse = self._array(twist.conj())
        spectrum = np.fft.fft(secret.astype(np.float64).view(np.complex128) * twist)
        self._secret = self._array(spectrum / HALF)

    def __repr__(self) -> str:
        return "Multiplier(OMITTED)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret polynomial is not copied and does not leave its process")

    def _array(self, array: NDArray[np.complex128]) -> Any:
        return self._xp.asarray(array, device=self._device)

    def scratch(self, rows: int) -> Scratch:
        """Room for ``rows`` polynomials at a time; each thread needs its own."""
        return Scratch(rows, self.limbs, self._xp, self._device)

    def multiply(self, a: Any, scratch: Scratch) -> Any:
        """a * s for each row of ``a``: integers of shape (rows, 2048), uniform and centred modulo q, folded.

        Returns float64 integers, congruent to the product modulo q and below 2^48 in magnitude, in an array
        that is overwritten by the next call with the same scratch.
        """
        xp, rows = self._xp, a.shape[0]
        used = scratch.complex[: rows * self.limbs]
        parts = used.view(xp.float64)
        if self.limbs == 1:
            parts[...] = a
        else:
            # The lower limb lies within +-2^15, and what remains is a multiple of 2^16.
            low, high = parts[:rows], parts[rows:]
            low[...] = a
            xp.multiply(low, 1 / _LIMB, out=high)
            xp.round(high, out=high)
            xp.multiply(high, _LIMB, out=scratch.real[:rows])
            xp.subtract(low, scratch.real[:rows], out=low)
        xp.multiply(used, self._twist, out=used)
        xp.fft.fft(used, out=used)
        xp.multiply(used, self._secret, out=used)
        xp.fft.ifft(used, norm="forward", out=used)
        xp.multiply(used, self._inverse, out=used)
        xp.round(parts, out=parts)
        if self.limbs == 1:
            return parts
        low, high = parts[:rows], parts[rows:]
        reduce(high, scratch.real[:rows], self.modulus, xp)
        xp.multiply(high, _LIMB, out=high)
        xp.add(low, high, out=low)
        return low


class Scratch:
    """Arrays that a block of polynomials passes through, allocated once."""

    __slots__ = ("complex", "real")

    def __init__(self, rows: int, limbs: int, xp: Any, device: Any) -> None:
        self.complex = xp.empty((rows * limbs, HALF), dtype=xp.complex128, device=device)
        self.real = xp.empty((rows, DEGREE), dtype=xp.float64, device=device)


def reduce(values: Any, quotients: Any, modulus: int, xp: Any = np) -> None:
    """In place: float64 integers below 2^48 in magnitude become their residues within +-(q - 1)/2, q odd.

    ``quotients``: scratch of the same shape. Exact: the computed values/q is off by less than 2^-52 |values|/q,
    and no integer is nearer than 1/(2q) to where the rounding turns; q times the quotient is below 2^53.
    """
    xp.multiply(values, 1 / modulus, out=quotients)
    xp.round(quotients, out=quotients)
    xp.multiply(quotients, modulus, out=quotients)
    xp.subtract(values, quotients, out=values)
