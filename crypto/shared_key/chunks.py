"""The structure of chunks and keys, checked completely before any native parser sees a byte."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cipherward.crypto.shared_key.wire import (
    HEADER_BYTES,
    SEED_BYTES,
    Header,
    Kind,
    pack_polynomial,
    polynomial_bytes,
    unpack_polynomial,
)
from cipherward.errors import FormatError


class Shape(Protocol):
    """What the structure depends on; SharedKeyParams has it."""

    @property
    def set_id(self) -> int:
        """The set's number on the wire."""

    @property
    def degree(self) -> int:
        """N."""

    @property
    def moduli(self) -> tuple[int, ...]:
        """Primes of a ciphertext."""

    @property
    def key_moduli(self) -> tuple[int, ...]:
        """Primes of the secret key: those of a ciphertext, then SEAL's special prime if the set has one."""

    def ciphertexts_in(self, index: int, length: int) -> int:
        """Ciphertexts in chunk ``index`` of a vector of ``length``."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A fresh symmetric ciphertext. ``c0``: uint64 of shape (primes, degree); ``seed``: 64 bytes, for c1."""

    c0: NDArray[np.uint64]
    seed: bytes


@dataclass(frozen=True, slots=True)
class Sum:
    """A ciphertext in full; both uint64 of shape (primes, degree)."""

    c0: NDArray[np.uint64]
    c1: NDArray[np.uint64]


def upload_bytes(shape: Shape, count: int) -> int:
    """Size of an upload chunk of ``count`` ciphertexts."""
    return HEADER_BYTES + count * (polynomial_bytes(shape.degree, shape.moduli) + SEED_BYTES)


def sum_bytes(shape: Shape, count: int) -> int:
    """Size of a sum chunk of ``count`` ciphertexts."""
    return HEADER_BYTES + count * 2 * polynomial_bytes(shape.degree, shape.moduli)


def key_bytes(shape: Shape) -> int:
    """Size of a secret key."""
    return HEADER_BYTES + polynomial_bytes(shape.degree, shape.key_moduli)


def _check_size(content: bytes | memoryview, expected: int, what: str) -> None:
    if len(content) != expected:
        raise FormatError(f"{what} is refused", why=f"it has {len(content)} bytes and must have {expected}")


def parse_upload(shape: Shape, chunk: bytes | memoryview, index: int, length: int) -> list[Upload]:
    """The ciphertexts of an upload chunk; FormatError for anything but the one valid structure."""
    what = f"upload chunk {index}"
    count = shape.ciphertexts_in(index, length)
    Header(shape.set_id, Kind.UPLOAD, count, index).check(chunk, what)
    _check_size(chunk, upload_bytes(shape, count), what)
    size = polynomial_bytes(shape.degree, shape.moduli)
    found, seeds, offset = [], set(), HEADER_BYTES
    for number in range(count):
        part = f"{what}, ciphertext {number}"
        seed = bytes(chunk[offset + size : offset + size + SEED_BYTES])
        if not any(seed):
            raise FormatError(f"{part} is refused", why="it has no seed: all its bytes are zero")
        if seed in seeds:
            raise FormatError(f"{part} is refused", why="its seed repeats that of another ciphertext")
        seeds.add(seed)
        # The seed follows the polynomial, so there are bytes enough for the last overlapping word.
        c0 = unpack_polynomial(chunk, offset, shape.degree, shape.moduli, part)
        if not c0.any():
            raise FormatError(f"{part} is refused", why="its first polynomial is zero")
        found.append(Upload(c0, seed))
        offset += size + SEED_BYTES
    return found


def parse_sum(shape: Shape, chunk: bytes, index: int, length: int) -> list[Sum]:
    """The ciphertexts of a sum chunk; FormatError for anything but the one valid structure."""
    what = f"sum chunk {index}"
    count = shape.ciphertexts_in(index, length)
    Header(shape.set_id, Kind.SUM, count, index).check(chunk, what)
    _check_size(chunk, sum_bytes(shape, count), what)
    size = polynomial_bytes(shape.degree, shape.moduli)
    padded = b"".join((chunk, bytes(8)))
    found, offset = [], HEADER_BYTES
    for number in range(count):
        part = f"{what}, ciphertext {number}"
        c0 = unpack_polynomial(padded, offset, shape.degree, shape.moduli, part)
        c1 = unpack_polynomial(padded, offset + size, shape.degree, shape.moduli, part)
        # Without c1 the rest is readable by anybody: no sum of real uploads looks like that.
        if not c1.any(axis=1).all():
            raise FormatError(f"{part} is refused", why="it is transparent: its second polynomial is zero")
        found.append(Sum(c0, c1))
        offset += 2 * size
    return found


def pack_upload(shape: Shape, ciphertexts: list[Upload], index: int) -> bytes:
    """The upload chunk with these ciphertexts."""
    parts = [Header(shape.set_id, Kind.UPLOAD, len(ciphertexts), index).pack()]
    for one in ciphertexts:
        parts += [pack_polynomial(one.c0, shape.moduli), one.seed]
    return b"".join(parts)


def pack_sum(shape: Shape, ciphertexts: list[Sum], index: int) -> bytes:
    """The sum chunk with these ciphertexts."""
    parts = [Header(shape.set_id, Kind.SUM, len(ciphertexts), index).pack()]
    for one in ciphertexts:
        parts += [pack_polynomial(one.c0, shape.moduli), pack_polynomial(one.c1, shape.moduli)]
    return b"".join(parts)
