"""Who does the accounting: this process, or the accountant's.

The first computation loads scipy.stats, which takes a second and leaves about 90 MB behind, more than the
rest of the daemon weighs. The daemon therefore asks a process that is made for it
(``accountant_service``) over a socket. Answers are remembered, so that a question asked once before a database
transaction is free inside it.
"""

from __future__ import annotations

import json
import math
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from cipherward.errors import FormatError, UnavailableError, WireError, from_wire
from cipherward.site_agent.ledger import accounting
from cipherward.site_agent.ledger.accountant_service import read_line
from cipherward.site_agent.ledger.accounting import PrivacyEvent, check_delta, check_round, merged
from cipherward.site_agent.ledger.encoding import canonical, events_to_json

_TIMEOUT = 300.0  # seconds, with the wait for others' answers; the slowest histories take some ten
_REMEMBERED = 256
_T = TypeVar("_T")


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


class ServedAccountant:
    """Asks the accountant's process each new question. For the daemon. Blocks: call it from a thread.

    ``connect``: gives a connection to it, e.g. ``Trainer.connect_accountant``; each question takes one.
    Methods raise UnavailableError if that process fails or answers nonsense, what ``connect`` raises, and
    UsageError as ``accounting`` does.
    """

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self._connect = connect
        self._lock = threading.Lock()
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
        return self._remembered(question, _epsilon)

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
        return self._remembered(question, _count)

    def _remembered(self, question: dict[str, Any], read: Callable[[Any], _T]) -> _T:
        text = canonical(question)
        with self._lock:
            if text in self._answers:
                self._answers.move_to_end(text)
                known: _T = self._answers[text]
                return known
        answer = self._ask(text, read)
        with self._lock:
            self._answers[text] = answer
            if len(self._answers) > _REMEMBERED:
                self._answers.popitem(last=False)
        return answer

    def _ask(self, text: str, read: Callable[[Any], _T]) -> _T:
        try:
            with self._connect() as connection:
                connection.settimeout(_TIMEOUT)
                connection.sendall(text.encode() + b"\n")
                reply = json.loads(read_line(connection))
            if "error" not in reply:
                return read(reply["answer"])
            refusal = WireError(**reply["error"])
        except (OSError, EOFError, FormatError, ValueError, KeyError, TypeError) as error:
            raise UnavailableError(
                "the privacy accountant did not answer",
                why=str(error) or type(error).__name__,
                fix="Nothing was spent; check the site's free memory and the trainer's log, and try again",
            ) from error
        raise from_wire(refusal)


def _epsilon(answer: Any) -> float:
    """Raises ValueError or TypeError for what no computation gives: such an answer must not pass a check."""
    value = float.fromhex(answer)
    if not value >= 0:
        raise ValueError(f"it answered {value}")
    return value


def _count(answer: Any) -> int:
    if type(answer) is not int or answer < 0:
        raise ValueError(f"it answered {answer!r}")
    return answer
