"""The wire format's elements: the 16-byte header and packed residues. Pure numpy, no native code.

A chunk is a header and, for each ciphertext, polynomial c0 followed by either the 64-byte seed from which
SEAL expands c1 (an upload) or c1 itself (a sum). A polynomial is its residues in NTT form, prime after
prime, each in ``width(prime)`` bytes, little-endian. Nothing is compressed, everything has one encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from cipherward.errors import FormatError

HEADER_BYTES = 16
SEED_BYTES = 64
MAGIC = b"CWCT"
VERSION = 1
_HEADER = struct.Struct("<4sBBBBII")
PLACE = struct.Struct(">IQ")
"""Where a chunk belongs, in requests to worker processes: its index, and the length of the vector."""


class Kind(IntEnum):
    """What follows the header."""

    UPLOAD = 1
    SUM = 2
    KEY = 3


class Generator(IntEnum):
    """SEAL's name for what expands the seed (``prng_type``)."""

    NONE = 0
    BLAKE2XB = 1


_GENERATOR = {Kind.UPLOAD: Generator.BLAKE2XB, Kind.SUM: Generator.NONE, Kind.KEY: Generator.NONE}


@dataclass(frozen=True, slots=True)
class Header:
    """The fields that vary. ``count``: ciphertexts; ``index``: of the chunk in its vector."""

    set_id: int
    kind: Kind
    count: int
    index: int

    def pack(self) -> bytes:
        """16 bytes."""
        return _HEADER.pack(
            MAGIC, VERSION, self.set_id, self.kind, _GENERATOR[self.kind], self.count, self.index
        )

    def check(self, content: bytes | memoryview, what: str) -> None:
        """FormatError unless ``content`` begins with exactly this header."""
        if len(content) < HEADER_BYTES:
            raise FormatError(f"{what} is refused", why=f"{len(content)} bytes are too few for a header")
        found = _HEADER.unpack_from(content)
        expected = _HEADER.unpack(self.pack())
        names = ("magic", "format version", "parameter set", "kind", "seed generator", "count", "index")
        for name, is_, should in zip(names, found, expected, strict=True):
            if is_ != should:
                raise FormatError(f"{what} is refused", why=f"its {name} is {is_!r} and must be {should!r}")


def width(prime: int) -> int:
    """Bytes of one residue."""
    return (prime.bit_length() + 7) // 8


def polynomial_bytes(degree: int, primes: Sequence[int]) -> int:
    """Bytes of one polynomial."""
    return degree * sum(width(prime) for prime in primes)


def pack_polynomial(residues: NDArray[np.uint64], primes: Sequence[int]) -> bytes:
    """Residues, uint64 of shape (primes, degree), each below its prime, as bytes."""
    octets = np.ascontiguousarray(residues, dtype="<u8").view(np.uint8).reshape(*residues.shape, 8)
    return b"".join(octets[row, :, : width(prime)].tobytes() for row, prime in enumerate(primes))


def unpack_polynomial(
    content: bytes | memoryview, offset: int, degree: int, primes: Sequence[int], what: str
) -> NDArray[np.uint64]:
    """Residues, uint64 of shape (primes, degree); FormatError if one is not below its prime.

    ``content`` must hold the polynomial and at least 7 bytes more: residues are read as overlapping
    64-bit words, of which the upper bytes are masked.
    """
    residues = np.empty((len(primes), degree), dtype=np.uint64)
    for row, prime in enumerate(primes):
        size = width(prime)
        words = np.ndarray((degree,), dtype="<u8", buffer=content, offset=offset, strides=(size,))
        np.bitwise_and(words, np.uint64((1 << 8 * size) - 1), out=residues[row])
        if int(residues[row].max()) >= prime:
            position = int(np.argmax(residues[row] >= np.uint64(prime)))
            raise FormatError(
                f"{what} is refused", why=f"residue {position} of prime {row} is not below the modulus"
            )
        offset += degree * size
    return residues
