"""Secret keys: the one of an attempt, and the sum of keys that opens a sum. The coordinator never imports this.

Everything secret in an attempt follows from 32 bytes of the operating system's randomness *and* the hedge, by
HKDF-SHA256 (RFC 5869) with a label for each purpose. So a machine that was cloned or restored, and whose
randomness repeats, does not use one key for two updates.
"""

from __future__ import annotations

import os
import threading
from typing import NoReturn

import numpy as np
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from cipherward.crypto.labels import Label, framed
from cipherward.crypto.quorum import shamir
from cipherward.crypto.quorum.params import DEGREE, QuorumParams
from cipherward.crypto.quorum.sampling import binomial_key
from cipherward.crypto.randomness import KEY_BYTES, KeyStream
from cipherward.errors import UsageError, VerificationError


class QuorumKey:
    """See ``cipherward.crypto.suites.base.OneTimeKey``. Has no repr of its content, does not pickle."""

    __slots__ = ("_dealt", "_lock", "_material", "_params", "_secret", "_spent")

    def __init__(self, params: QuorumParams, randomness: bytes, hedge: bytes) -> None:
        """``randomness``: 32 bytes, fresh from the operating system except in tests and vectors."""
        if len(randomness) != KEY_BYTES:
            raise UsageError(f"a key is made from {KEY_BYTES} random bytes, not {len(randomness)}")
        self._params = params
        self._material = randomness + hedge
        self._secret = binomial_key(KeyStream(self._derive(Label.ATTEMPT_KEY)))
        self._lock = threading.Lock()
        self._spent = False
        self._dealt: tuple[int, int] | None = None

    def __repr__(self) -> str:
        return f"<one-time key of {self._params.name}, content omitted>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret key does not pickle and is not copied")

    @property
    def params(self) -> QuorumParams:
        """The set it belongs to."""
        return self._params

    def _derive(self, label: Label, *parts: bytes) -> bytes:
        return HKDF(SHA256(), KEY_BYTES, salt=None, info=framed(label, *parts)).derive(self._material)

    def deal(self, threshold: int, members: int) -> list[bytes]:
        """Shares for the points 1 to ``members``, the same at every call; see the protocol.

        A key is dealt one way: UsageError for other numbers afterwards, whose shares would add to the first.
        """
        numbers = (threshold, members)
        # Their stream is theirs alone, so that shares by one polynomial never meet those by another.
        seed = self._derive(Label.ATTEMPT_SHARES, *(number.to_bytes(4, "big") for number in numbers))
        with self._lock:
            if self._dealt not in (None, numbers):
                raise UsageError(
                    "this key has already been dealt with another threshold or number of members"
                )
            shares = shamir.split(self._secret, threshold, members, KeyStream(seed))
            self._dealt = numbers
        return shares

    def spend(self, context: bytes) -> tuple[NDArray[np.int64], bytes]:
        """The secret polynomial and the key of the errors' stream, once: UsageError ever after."""
        with self._lock:
            if self._spent:
                raise UsageError(
                    "a key encrypts one update, once",
                    why="the difference of two updates under one key would be open to everybody",
                    fix="Make a new attempt with a fresh key",
                )
            self._spent = True
        return self._secret, self._derive(Label.ATTEMPT_ERRORS, context)


class SumKey:
    """The sum of the contributors' keys: it opens the sum of their updates, and no single one."""

    __slots__ = ("_contributors", "_params", "_secret")

    def __init__(self, params: QuorumParams, secret: NDArray[np.int64], contributors: int) -> None:
        """``secret``: int64 of shape (2048,), folded.

        Raises VerificationError if a coefficient is larger than a sum of so many keys can have.
        """
        params.check_contributors(contributors)
        bound = params.key_bound(contributors)
        if secret.shape != (DEGREE,) or secret.dtype != np.int64:
            raise UsageError(f"a key of shape {secret.shape} and type {secret.dtype} is not a sum of keys")
        if secret.max() > bound or secret.min() < -bound:
            raise VerificationError(
                "the key of the sum is refused",
                why=f"a coefficient exceeds {bound}, the most that {contributors} keys can add up to",
                fix="An answer or a dealt share is wrong; do not open the sum with it",
            )
        self._params = params
        self._secret = secret
        self._contributors = contributors

    def __repr__(self) -> str:
        return f"<sum of {self._contributors} keys of {self._params.name}, content omitted>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret key does not pickle and is not copied")

    @property
    def params(self) -> QuorumParams:
        """The set it belongs to."""
        return self._params

    @property
    def contributors(self) -> int:
        """How many keys it is the sum of."""
        return self._contributors

    def polynomial(self) -> NDArray[np.int64]:
        """Its coefficients, int64 of shape (2048,), folded. Never log or send them."""
        return self._secret


def generate(params: QuorumParams, hedge: bytes) -> QuorumKey:
    """A fresh key of an attempt."""
    return QuorumKey(params, os.urandom(KEY_BYTES), hedge)
