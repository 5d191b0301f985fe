"""The randomness that privacy rests on: AES-256-CTR keyed by the operating system.

Poisson sampling and the Gaussian noise of DP-SGD both draw from one ``KeyStream``. A seeded numpy or torch
generator would not do: whoever guesses 64 bits of seed subtracts the noise. (Opacus's ``secure_mode`` has the
same aim; the package it needs no longer installs.)
"""

from __future__ import annotations

import builtins
import os
from typing import Any, NoReturn

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from cipherward.crypto.labels import Label, framed
from cipherward.errors import UsageError

KEY_BYTES = 32
_WORD = np.dtype("<u8")
_CHUNK = 1 << 14
"""Normal deviates made at a time: the scratch memory of ``gaussian``, under 1 MB, stays in the processor's cache."""
TERMS = 2
"""Box-Muller deviates in a normal deviate, see ``KeyStream.gaussian``."""
_ZEROS = builtins.bytes(1 << 20)
"""What a keystream is added to: encrypting zeros gives the keystream itself."""


def hedged_key(label: Label, secret: bytes, *context: bytes) -> bytes:
    """A fresh key of 32 bytes: HKDF-SHA256 (RFC 5869) over the operating system's randomness and what the key
    is to encrypt. So a machine that was cloned or restored, and whose randomness repeats, does not use one key
    for two contents."""
    info = framed(label, *context)
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=info).derive(os.urandom(KEY_BYTES) + secret)


def _counter(block: int) -> bytes:
    return block.to_bytes(16, "big")


class KeyStream:
    """A stream of secret random bytes and of the deviates made from them.

    The stream belongs to the process that made it. A forked copy would repeat the noise of its parent, and
    the difference of two releases with the same noise has none; so a copy refuses to work. It has no repr
    and does not pickle, and 128 bits of counter never wrap.
    """

    __slots__ = ("_encryptor", "_process")

    def __init__(self, key: builtins.bytes | None = None, block: int = 0) -> None:
        """``key``: 32 bytes that were derived; by default fresh ones from the operating system.

        ``block``: where in the keystream to begin, as the 128-bit counter of its 16-byte blocks.
        """
        if key is None:
            key = os.urandom(KEY_BYTES)
        if len(key) != KEY_BYTES:
            raise UsageError(f"a stream key has {KEY_BYTES} bytes, not {len(key)}")
        self._encryptor = Cipher(algorithms.AES(key), modes.CTR(_counter(block))).encryptor()
        self._process = os.getpid()

    def __repr__(self) -> str:
        return "KeyStream(OMITTED)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a KeyStream is secret and does not leave its process")

    def bytes(self, count: int) -> builtins.bytes:
        """The next ``count`` bytes of the stream. Raises UsageError in a process forked after creation."""
        self._refuse_in_a_copy()
        return self._encryptor.update(bytes(count))

    def seek(self, block: int) -> None:
        """Go on from that block of the keystream, as a new stream with this key would."""
        self._encryptor.reset_nonce(_counter(block))

    def fill(self, out: NDArray[Any]) -> None:
        """Overwrite a C-contiguous array with the next ``out.nbytes`` bytes. UsageError as ``bytes``."""
        self._refuse_in_a_copy()
        octets = out.data.cast("B")
        for start in range(0, len(octets), len(_ZEROS)):
            part = octets[start : start + len(_ZEROS)]
            self._encryptor.update_into(memoryview(_ZEROS)[: len(part)], part)

    def _refuse_in_a_copy(self) -> None:
        if os.getpid() != self._process:
            raise UsageError(
                "this random stream was made by another process",
                why="a forked copy would repeat its parent's noise",
                fix="Make a KeyStream in each process",
            )

    def uniform53(self, count: int) -> NDArray[np.float64]:
        """``count`` multiples of 2**-53, uniform over [0, 1). Shape (count,), float64."""
        words = np.frombuffer(self.bytes(count * _WORD.itemsize), dtype=_WORD)
        return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def gaussian(self, count: int) -> NDArray[np.float64]:
        """``count`` standard normal deviates. Shape (count,), float64. UsageError as ``bytes``.

        Each is the sum of two Box-Muller deviates from different pairs, over the root of 2. A single one ends
        at 8.6 standard deviations, and from 7.4 on its steps are wider than the grid that noised sums are rounded
        to; two end at 12.1, and their steps are finer than 2**-30 up to 8. Opacus adds four, after Holohan and
        Braghin ("Secure random sampling in differential privacy", ESORICS 2021, section 5.1): that hides the low
        bits of what is released, which the grid takes away altogether (``training.noise``). So a deviate must
        not be released as it is.
        """
        out = np.empty(count, dtype=np.float64)
        pairs = (min(count, _CHUNK) + 1) // 2
        words = np.empty((2, TERMS, pairs), dtype=_WORD)
        uniform, square, scale = np.empty(words.shape), np.empty(words.shape[1:]), np.empty(words.shape[1:])
        terms = np.empty((2, pairs))
        for start in range(0, count, _CHUNK):
            self.fill(words)
            np.right_shift(words, np.uint64(11), out=words)
            np.multiply(words, 2.0**-53, out=uniform)
            radius, tangent = uniform
            # 1 - u lies in (0, 1]: the logarithm is always finite.
            np.log(np.subtract(1.0, radius, out=radius), out=radius)
            np.sqrt(np.multiply(radius, -2.0 / TERMS, out=radius), out=radius)
            # Sine and cosine from the tangent of half the angle, which numpy computes six times faster:
            # (1 - t^2) / (1 + t^2) and 2 t / (1 + t^2). At the pole, t = 1.6e16 in float64.
            np.tan(np.multiply(np.subtract(tangent, 0.5, out=tangent), np.pi, out=tangent), out=tangent)
            np.multiply(tangent, tangent, out=square)
            np.divide(radius, np.add(square, 1.0, out=scale), out=scale)
            np.multiply(np.subtract(1.0, square, out=square), scale, out=square)
            np.multiply(np.multiply(tangent, 2.0, out=tangent), scale, out=tangent)
            # Row k holds the k-th term of every deviate, so that no deviate uses both halves of a pair.
            np.sum(square, axis=0, out=terms[0])
            np.sum(tangent, axis=0, out=terms[1])
            out[start : start + _CHUNK] = terms.ravel()[: min(_CHUNK, count - start)]
        return out
