"""What a site keeps in memory only, for one round: its round key and what that key opened.

After a restart it is gone, and the site counts as a dropout in that round. It is dropped at release, at an abort
and, should the coordinator fall silent, at the round's deadline, so that ciphertexts and shares that somebody
captured cannot be opened from this machine later. (Python cannot overwrite freed memory: what is claimed is that
nothing here refers to it any more.)
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import NoReturn

from cipherward.crypto.sealing import SealingKey
from cipherward.proto.v1.coordinator_pb2 import PostAnswerRequest


@dataclass(slots=True, eq=False)
class RoundSecret:
    """Of one round. No repr of its content, no pickle."""

    round: int
    key: SealingKey = field(default_factory=SealingKey.generate, repr=False)
    shares: dict[bytes, bytes] = field(default_factory=dict, repr=False)
    """Opened shares, by digest of the dealer's commit."""
    answer: PostAnswerRequest | None = field(default=None, repr=False)
    """What was answered: a repeat sends the same bytes."""

    def __reduce__(self) -> NoReturn:
        raise TypeError("a round's secrets do not pickle")


class RoundSecrets:
    """The secret of the round in progress, for one study. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._secret: RoundSecret | None = None
        self._timer: threading.Timer | None = None

    def fresh(self, round_number: int, seconds: float) -> RoundSecret:
        """A new secret in place of any other; dropped after ``seconds`` at the latest."""
        secret = RoundSecret(round_number)
        with self._lock:
            self._drop()
            self._secret = secret
            self._timer = threading.Timer(seconds, self.forget, args=(round_number,))
            self._timer.daemon = True
            self._timer.start()
        return secret

    def of(self, round_number: int) -> RoundSecret | None:
        """The round's secret, if it is still here."""
        with self._lock:
            if self._secret is None or self._secret.round != round_number:
                return None
            return self._secret

    def holding(self, round_number: int, round_key: bytes) -> RoundSecret | None:
        """The round's secret if it has the private half of that key."""
        secret = self.of(round_number)
        return secret if secret is not None and secret.key.public() == round_key else None

    def forget(self, round_number: int) -> None:
        """Drop the secret of that round or an earlier one."""
        with self._lock:
            if self._secret is not None and self._secret.round <= round_number:
                self._drop()

    def _drop(self) -> None:
        self._secret = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
