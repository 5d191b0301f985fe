"""SEAL 4's file format, as far as this suite needs it: uncompressed files out, zstd files in.

Layout (native/src/seal: serialization.h, ciphertext.cpp, plaintext.cpp, dynarray.h, randomgen.cpp), all
little-endian. Header, 16 bytes: magic 0xA15E, header size 16, major, minor, compression, reserved u16,
total size u64. Ciphertext: parms_id 32 B, is_ntt u8, size u64, N u64, primes u64, scale f64, correction
factor u64, array; a fresh symmetric one has only c0 in the array and then a generator record, from which
SEAL expands c1. Plaintext (the secret key is one): parms_id, coefficient count u64, scale f64, array.
Array: header, count u64, u64 words. Generator record: header, type u8, seed 64 B.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import zstandard
from numpy.typing import NDArray

from cipherward.crypto.shared_key.wire import SEED_BYTES, Generator
from cipherward.errors import FormatError

_HEADER = struct.Struct("<HBBBBHQ")
_MAGIC = 0xA15E
_NONE, _ZSTD = 0, 2
_CIPHERTEXT = struct.Struct("<32sBQQQdQ")
_PLAINTEXT = struct.Struct("<32sQd")
_COUNT = struct.Struct("<Q")
_ARRAY_BYTES = _HEADER.size + _COUNT.size
_GENERATOR = struct.Struct(f"<B{SEED_BYTES}s")
_MOST_WINDOW = 2**27
"""Memory that a frame may ask for to be decompressed; SEAL's levels ask for less."""

Words = NDArray[np.uint64]


def _wrong(part: str) -> FormatError:
    return FormatError(
        "SEAL wrote a file of another layout", why=f"its {part} is not as expected", fix="Reinstall tenseal"
    )


@dataclass(frozen=True, slots=True)
class SealFormat:
    """What files of one SEAL context share. ``version``: (major, minor) as SEAL writes it."""

    version: tuple[int, int]
    degree: int
    primes: int
    key_primes: int
    scale: float
    parms_id: bytes
    key_parms_id: bytes

    def _file(self, content: bytes) -> bytes:
        total = _HEADER.size + len(content)
        return _HEADER.pack(_MAGIC, _HEADER.size, *self.version, _NONE, 0, total) + content

    def _array(self, words: Words) -> bytes:
        data = np.ascontiguousarray(words, dtype="<u8")
        return self._file(_COUNT.pack(data.size) + data.tobytes())

    def _body(self, file: bytes, size: int) -> bytes:
        """The content of a file of SEAL's, which must have exactly ``size`` bytes when decompressed."""
        magic, header, major, minor, compression, _, total = _HEADER.unpack_from(file)
        if (magic, header, total) != (_MAGIC, _HEADER.size, len(file)) or (major, minor) != self.version:
            raise _wrong("header")
        body = file[_HEADER.size :]
        if compression == _ZSTD:
            # Not ``decompress``: that believes the frame's own word for its size, and allocates it.
            try:
                body = (
                    zstandard.ZstdDecompressor(max_window_size=_MOST_WINDOW)
                    .stream_reader(body)
                    .read(size + 1)
                )
            except zstandard.ZstdError as error:
                raise _wrong("compressed content") from error
        elif compression != _NONE:
            raise _wrong("compression")
        if len(body) != size:
            raise _wrong("size")
        return body

    def _words(self, body: bytes, offset: int, count: int) -> Words:
        head = self._file(_COUNT.pack(count) + bytes(8 * count))[:_ARRAY_BYTES]
        if body[offset : offset + _ARRAY_BYTES] != head:
            raise _wrong("array")
        return np.frombuffer(body, dtype="<u8", count=count, offset=offset + _ARRAY_BYTES).astype(np.uint64)

    def _ciphertext_head(self) -> bytes:
        return _CIPHERTEXT.pack(self.parms_id, 1, 2, self.degree, self.primes, self.scale, 1)

    def _polynomial(self, words: Words) -> Words:
        return words.reshape(self.primes, self.degree)

    def write_seeded(self, c0: Words, seed: bytes) -> bytes:
        """The file of a fresh ciphertext."""
        generator = self._file(_GENERATOR.pack(Generator.BLAKE2XB, seed))
        return self._file(self._ciphertext_head() + self._array(c0) + generator)

    def read_seeded(self, file: bytes) -> tuple[Words, bytes]:
        """c0 and seed of a fresh ciphertext."""
        count = self.primes * self.degree
        at = _CIPHERTEXT.size + _ARRAY_BYTES + 8 * count
        size = at + _HEADER.size + _GENERATOR.size
        body = self._body(file, size)
        if body[: _CIPHERTEXT.size] != self._ciphertext_head():
            raise _wrong("ciphertext")
        kind, seed = _GENERATOR.unpack_from(body, at + _HEADER.size)
        if body[at:] != self._file(_GENERATOR.pack(Generator.BLAKE2XB, seed)) or kind != Generator.BLAKE2XB:
            raise _wrong("seed")
        return self._polynomial(self._words(body, _CIPHERTEXT.size, count)), seed

    def write_full(self, c0: Words, c1: Words) -> bytes:
        """The file of a ciphertext with both polynomials."""
        return self._file(self._ciphertext_head() + self._array(np.concatenate((c0, c1))))

    def read_full(self, file: bytes) -> tuple[Words, Words]:
        """c0 and c1."""
        count = 2 * self.primes * self.degree
        body = self._body(file, _CIPHERTEXT.size + _ARRAY_BYTES + 8 * count)
        if body[: _CIPHERTEXT.size] != self._ciphertext_head():
            raise _wrong("ciphertext")
        words = self._words(body, _CIPHERTEXT.size, count)
        return self._polynomial(words[: count // 2]), self._polynomial(words[count // 2 :])

    def write_key(self, residues: Words) -> bytes:
        """The file of a secret key; ``residues`` of shape (key_primes, degree), NTT form."""
        head = _PLAINTEXT.pack(self.key_parms_id, residues.size, 1.0)
        return self._file(head + self._array(residues))

    def read_key(self, file: bytes) -> Words:
        """Residues of a secret key, of shape (key_primes, degree), NTT form."""
        count = self.key_primes * self.degree
        body = self._body(file, _PLAINTEXT.size + _ARRAY_BYTES + 8 * count)
        if body[: _PLAINTEXT.size] != _PLAINTEXT.pack(self.key_parms_id, count, 1.0):
            raise _wrong("secret key")
        return self._words(body, _PLAINTEXT.size, count).reshape(self.key_primes, self.degree)
