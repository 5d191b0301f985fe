"""Counts calls per caller and RPC, against the policy table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cipherward.clock import Clock
from cipherward.coordinator.api.policy import Policy
from cipherward.errors import LimitError

_FORGET_ABOVE = 20_000  # callers are members: more buckets than this are full ones of long ago


@dataclass
class _Bucket:
    tokens: float
    filled_at: float
    open_calls: int = 0


class Limits:
    """Token buckets and open calls. Only used from the event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str, str], _Bucket] = {}

    @contextmanager
    def admit(self, caller: str, rpc: str, policy: Policy) -> Iterator[None]:
        """Let one call in for as long as the context lasts; raises LimitError."""
        now = self._clock.monotonic()
        bucket = self._buckets.get((caller, rpc))
        if bucket is None:
            if len(self._buckets) > _FORGET_ABOVE:
                self._buckets = {key: b for key, b in self._buckets.items() if b.open_calls}
            bucket = self._buckets[caller, rpc] = _Bucket(policy.burst, now)
        bucket.tokens = min(policy.burst, bucket.tokens + (now - bucket.filled_at) * policy.per_second)
        bucket.filled_at = now
        if bucket.tokens < 1:
            raise LimitError(
                f"{rpc} is called too often",
                why=f"a caller may do so {policy.per_second:g} times a second",
                fix="Wait and try again",
            )
        bucket.tokens -= 1
        if bucket.open_calls >= policy.open_calls:
            raise LimitError(
                f"too many {rpc} calls are open",
                why=f"a caller may have {policy.open_calls} at a time",
                fix="Close one first",
            )
        bucket.open_calls += 1
        try:
            yield
        finally:
            bucket.open_calls -= 1
