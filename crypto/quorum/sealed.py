"""Shares and answers on their way between members: sealed so that only the one receiver can open them, in one
round, for one set of ciphertexts.

HPKE in base mode does not say who sealed: a share is opened only after its place under the root in the dealer's
signed commit was checked, an answer's key only after its place under the root in the member's signed answer.
This module can hold decryption keys, so the coordinator does not import it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cipherward.crypto.labels import Label, framed
from cipherward.crypto.randomness import hedged_key
from cipherward.crypto.sealing import SealingKey, seal
from cipherward.errors import VerificationError

_NONCE = bytes(12)
"""Each answer's AES key is fresh and encrypts once."""


def _number(value: int) -> bytes:
    return value.to_bytes(4, "big")


@dataclass(frozen=True, slots=True)
class Dealing:
    """One site's shares of one attempt's key, to the members of J in order (HPKE's info names all of it)."""

    manifest_digest: bytes
    plan_digest: bytes
    suite: str
    """Name of the suite and its parameter set."""
    threshold: int
    members: tuple[str, ...]
    dealer: str
    attempt: int
    ciphertext_root: bytes

    def _context(self, index: int) -> tuple[bytes, ...]:
        return (
            self.manifest_digest,
            self.plan_digest,
            self.suite.encode(),
            _number(len(self.members)),
            _number(self.threshold),
            _number(self.attempt),
            self.dealer.encode(),
            self.members[index].encode(),
            _number(index + 1),  # the receiver's point
            self.ciphertext_root,
        )

    def seal(self, round_keys: Sequence[bytes], shares: Sequence[bytes]) -> list[bytes]:
        """One sealed share for each member, in order. FormatError for a round key that is none."""
        return [
            seal(key, share, Label.SEAL_SHARE, *self._context(index))
            for index, (key, share) in enumerate(zip(round_keys, shares, strict=True))
        ]

    def open(self, index: int, key: SealingKey, sealed: bytes) -> bytes:
        """The share for ``members[index]``. VerificationError if it was sealed for anything else."""
        return key.open(sealed, Label.SEAL_SHARE, *self._context(index))


@dataclass(frozen=True, slots=True)
class Answering:
    """One member's answer about the one U of a round."""

    manifest_digest: bytes
    plan_digest: bytes
    close_digest: bytes
    members: tuple[str, ...]
    member: str

    def _context(self, *more: bytes) -> tuple[bytes, ...]:
        return (self.manifest_digest, self.plan_digest, self.close_digest, self.member.encode(), *more)

    def _receiver(self, index: int) -> tuple[bytes, ...]:
        return self._context(self.members[index].encode(), _number(index + 1))

    def seal(self, round_keys: Sequence[bytes], vector: bytes) -> tuple[bytes, list[bytes]]:
        """The vector, encrypted once, and its key, sealed to each member in order."""
        key = hedged_key(Label.ANSWER_KEY, vector, *self._context())
        encrypted = AESGCM(key).encrypt(_NONCE, vector, framed(Label.SEAL_ANSWER, *self._context()))
        sealed = [
            seal(public, key, Label.SEAL_ANSWER, *self._receiver(index))
            for index, public in enumerate(round_keys)
        ]
        return encrypted, sealed

    def open(self, index: int, key: SealingKey, encrypted: bytes, sealed_key: bytes) -> bytes:
        """The vector, for ``members[index]``. VerificationError if any part was made for anything else."""
        vector_key = key.open(sealed_key, Label.SEAL_ANSWER, *self._receiver(index))
        try:
            return AESGCM(vector_key).decrypt(_NONCE, encrypted, framed(Label.SEAL_ANSWER, *self._context()))
        except (InvalidTag, ValueError) as error:
            raise VerificationError(
                f"the answer of {self.member} does not open", why="it was changed, or made for another round"
            ) from error
