"""The accountant's process: answers privacy accounting for the agents that share a trainer.

The preloaded trainer server forks it when somebody asks (``training.server``). That server has scipy in
memory already, so the process is ready in milliseconds, where a new program needs a second. It lives on
between questions, for the loss distribution of one step, most of a first answer's cost, is the same in every
round; agents with the same history cost one computation. After a minute without a question it ends, and its
memory is given back.

Its answers decide what a hospital spends, so nothing of a study may reach it: it is forked from a process that
runs no task code and reads no data, and is no job itself. What it remembers is in its memory alone; a file of
answers could be changed to make privacy look cheap. If it dies, whoever asked learns that there was no answer
and spends nothing.

A question is one line of JSON on a connection of its own, and so is its answer. One is answered at a time.
"""

from __future__ import annotations

import json
import select
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from cipherward.errors import CipherwardError, FormatError
from cipherward.site_agent.ledger import accounting
from cipherward.site_agent.ledger.encoding import canonical, events_from_json

IDLE_SECONDS = 60.0
"""After the last question."""
ANSWER_SECONDS = 240.0
"""For one answer, then the kernel ends the process; less than its asker waits."""

_ASK_SECONDS = 10.0  # for a question to arrive once its asker has connected
_MAX_LINE = 2**22  # bytes; an event takes some 60, and a merged history has few


def accounting_socket(trainer_socket: Path) -> Path:
    """Where the accountant of a trainer is asked: beside the trainer's own socket."""
    return trainer_socket.with_name(trainer_socket.name + ".accounting")


def serve(
    listener: socket.socket, *, idle_seconds: float = IDLE_SECONDS, answer_seconds: float = ANSWER_SECONDS
) -> None:
    """Answer until nobody has asked for ``idle_seconds``. In the main thread of a process of its own.

    Whoever connects too late for this process is answered by the next one on the same listener. An answer
    that takes longer than ``answer_seconds`` ends this process by SIGALRM.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    while poll.poll(idle_seconds * 1000):
        connection, _ = listener.accept()
        with connection, suppress(OSError, EOFError):  # an asker that went away
            connection.settimeout(_ASK_SECONDS)
            question = read_line(connection)
            signal.setitimer(signal.ITIMER_REAL, answer_seconds)
            reply = canonical(_reply(question))
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.sendall(reply.encode() + b"\n")


def read_line(connection: socket.socket) -> bytes:
    """One line. Raises EOFError if the peer closes before its end, FormatError if it is too long, OSError."""
    with connection.makefile("rb") as stream:
        line = stream.readline(_MAX_LINE)
    if line.endswith(b"\n"):
        return line
    if len(line) == _MAX_LINE:
        raise FormatError("a line is too long", why=f"the limit is {_MAX_LINE} bytes")
    raise EOFError("its process ended")


def _reply(question: bytes) -> dict[str, Any]:
    try:
        return {"answer": _computation(question)()}
    except CipherwardError as error:
        return {"error": {"code": error.code, "what": error.what, "why": error.why, "fix": error.fix}}


def _computation(question: bytes) -> Callable[[], str | int]:
    """What a question asks for. Raises FormatError for what is none."""
    try:
        asked = json.loads(question)
        events, delta = events_from_json(asked["events"]), float.fromhex(asked["delta"])
        if asked["ask"] == "epsilon":
            return lambda: accounting.epsilon(events, delta).hex()
        if asked["ask"] == "rounds_left":
            per_round, ceiling = events_from_json(asked["per_round"]), float.fromhex(asked["ceiling"])
            return lambda: accounting.rounds_left(events, per_round, ceiling, delta)
        raise ValueError(f"{asked['ask']!r} is not known")
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError("the accountant was asked something unreadable", why=str(error)) from error
