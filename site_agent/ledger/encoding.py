"""Privacy events and numbers as JSON with exactly one spelling: the ledger hashes it, and the accountant's
process reads it. Floats travel in hexadecimal, so that no digit is lost and infinity has a name."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from cipherward.errors import FormatError, UsageError
from cipherward.site_agent.ledger.accounting import Gaussian, PrivacyEvent, SampledGaussian


def canonical(value: Any) -> str:
    """JSON with sorted keys, no spaces, ASCII only. Floats must have gone through ``float.hex`` before."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def events_to_json(events: Iterable[PrivacyEvent]) -> list[list[Any]]:
    """One list an event: the mechanism's name, then its parameters."""
    out: list[list[Any]] = []
    for event in events:
        sigma = float(event.noise_multiplier).hex()
        if isinstance(event, SampledGaussian):
            out.append(["sampled-gaussian", sigma, float(event.sampling_rate).hex(), event.steps])
        else:
            out.append(["gaussian", sigma, event.count])
    return out


def events_from_json(value: Any) -> tuple[PrivacyEvent, ...]:
    """The inverse; raises FormatError for anything that ``events_to_json`` does not write."""
    try:
        return tuple(_event(*item) for item in value)
    except (TypeError, ValueError, UsageError) as error:
        raise FormatError("a privacy event cannot be read", why=str(error)) from error


def _event(mechanism: str, sigma: str, *rest: Any) -> PrivacyEvent:
    if mechanism == "sampled-gaussian":
        rate, steps = rest
        return SampledGaussian(float.fromhex(sigma), float.fromhex(rate), steps)
    if mechanism == "gaussian":
        (count,) = rest
        return Gaussian(float.fromhex(sigma), count)
    raise ValueError(f"the mechanism {mechanism!r} is not known")
