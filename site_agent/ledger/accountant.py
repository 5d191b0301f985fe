"""Who does the accounting: this process, or a short-lived one.

The first computation loads scipy.stats and leaves about 90 MB behind, more than the rest of the daemon
weighs. The daemon therefore asks a process that ends with its answer: 0.7 s more, and nothing stays. Answers
are remembered, so that a question asked once before a database transaction is free inside it.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from cipherward.errors import FormatError, UnavailableError
from cipherward.site_agent.ledger import accounting
from cipherward.site_agent.ledger.accounting import PrivacyEvent, check_delta, check_round, merged
from cipherward.site_agent.ledger.encoding import canonical, events_from_json, events_to_json

_TIMEOUT = 300.0  # seconds; the slowest histories that are not answered by RDP take some ten
_REMEMBERED = 256


class Accountant(Protocol):
    """Upper bounds on privacy loss; see ``accounting`` for the meaning of each."""

    def epsilon(self, events: Iterable[PrivacyEvent], delta: float) -> float:
        """Of all ``events`` together."""

    def rounds_left(
        self, spent: Iterable[PrivacyEvent], per_round: Sequence[PrivacyEvent], ceiling: float, delta: float
    ) -> int:
        """How many more rounds fit under ``ceiling``."""


class LocalAccountant:
    """Computes in this process. For commands, the trainer's child processes and evaluation."""

    def epsilon(self, events: Iterable[PrivacyEvent], delta: float) -> float:
        """See ``accounting.epsilon``."""
        return accounting.epsilon(events, delta)

    def rounds_left(
        self, spent: Iterable[PrivacyEvent], per_round: Sequence[PrivacyEvent], ceiling: float, delta: float
    ) -> int:
        """See ``accounting.rounds_left``."""
        return accounting.rounds_left(spent, per_round, ceiling, delta)


class SubprocessAccountant:
    """Computes in a fresh process for each new question. For the daemon. Blocks: call it from a thread.

    Methods raise UnavailableError if that process fails, and UsageError as ``accounting`` does.
    """

    def __init__(self) -> None:
        self._answers: OrderedDict[str, Any] = OrderedDict()

    def epsilon(self, events: Iterable[PrivacyEvent], delta: float) -> float:
        """See ``accounting.epsilon``."""
        check_delta(delta)
        history = merged(events)
        if not history:
            return 0.0
        if any(event.noise_multiplier == 0 for event in history):
            return math.inf
        question = {"ask": "epsilon", "events": events_to_json(history), "delta": delta.hex()}
        return float.fromhex(self._ask(question))

    def rounds_left(
        self, spent: Iterable[PrivacyEvent], per_round: Sequence[PrivacyEvent], ceiling: float, delta: float
    ) -> int:
        """See ``accounting.rounds_left``."""
        check_delta(delta)
        check_round(per_round)
        question = {
            "ask": "rounds_left",
            "events": events_to_json(merged(spent)),
            "per_round": events_to_json(per_round),
            "ceiling": float(ceiling).hex(),
            "delta": delta.hex(),
        }
        return int(self._ask(question))

    def _ask(self, question: dict[str, Any]) -> Any:
        text = canonical(question)
        if text in self._answers:
            self._answers.move_to_end(text)
            return self._answers[text]
        try:
            done = subprocess.run(  # noqa: S603 - our own module, by our own interpreter
                [sys.executable, "-I", "-m", __name__],
                input=text,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT,
                check=True,
            )
            answer = json.loads(done.stdout)
        except (OSError, subprocess.SubprocessError, json.JSONDecodeError) as error:
            said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
            raise UnavailableError(
                "the privacy accountant did not answer",
                why=said[-1] if said else "its process ended",
                fix="Nothing was spent; check the site's free memory and try again",
            ) from error
        self._answers[text] = answer
        if len(self._answers) > _REMEMBERED:
            self._answers.popitem(last=False)
        return answer


def answer(question: dict[str, Any]) -> Any:
    """What the accountant's process replies to one question. Raises FormatError for an unknown one."""
    events, delta = events_from_json(question["events"]), float.fromhex(question["delta"])
    if question["ask"] == "epsilon":
        return accounting.epsilon(events, delta).hex()
    if question["ask"] == "rounds_left":
        per_round, ceiling = events_from_json(question["per_round"]), float.fromhex(question["ceiling"])
        return accounting.rounds_left(events, per_round, ceiling, delta)
    raise FormatError(f"the accountant was asked for {question['ask']!r}", why="it does not know that")


if __name__ == "__main__":
    sys.stdout.write(canonical(answer(json.load(sys.stdin))))
