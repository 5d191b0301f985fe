"""The trainer's jobs, as its child process runs them: a request's header and arrays in, a reply's out.

    train            one round of DP-SGD on the source's training patients, and metrics
    evaluate         exact figures on one split of the source, for the hospital's own eyes
    describe         what ledger and policy must know about a source: its training patients, the model's size
    initial_weights  the task's model built under a seed

Each names the task and the digest that its code must have; other code is refused before any of it runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from cipherward.crypto.randomness import KeyStream
from cipherward.errors import FormatError
from cipherward.site_agent.tasks.base import Split, Task
from cipherward.site_agent.tasks.registry import check_digest, find
from cipherward.site_agent.training import constants
from cipherward.site_agent.training.protocol import Array

Header = dict[str, Any]
Reply = tuple[Header, dict[str, Array]]


def run(header: Header, arrays: dict[str, Array]) -> Reply:
    """One job. Raises FormatError for a malformed request, VerificationError if the task's code is not the
    code expected, and whatever the task raises."""
    try:
        handler = _HANDLERS[header["job"]]
        name, expected = str(header["task"]), bytes.fromhex(header["digest"])
    except (KeyError, ValueError, TypeError) as error:
        raise FormatError("the trainer got a malformed request", why=repr(error)) from error
    check_digest(name, expected)
    return handler(find(name), header, arrays)


def _train(task: Task, header: Header, arrays: dict[str, Array]) -> Reply:
    from cipherward.site_agent.training import dpsgd

    began = time.monotonic()
    chosen = constants.from_json(header["constants"])
    records = task.load(header["source"], Split.TRAIN)
    result = dpsgd.train(task, records, arrays["weights"].astype(np.float32), chosen, KeyStream())
    seconds = time.monotonic() - began
    reply = {"seconds": seconds, "dropped": result.dropped, "patients": records.patients}
    return reply, {"update": result.update, "metrics": result.metrics}


def _evaluate(task: Task, header: Header, arrays: dict[str, Array]) -> Reply:
    from cipherward.site_agent.training import metrics, weights

    model = weights.build(task)
    weights.assign(model, arrays["weights"].astype(np.float32))
    return asdict(metrics.evaluate(task, model, task.load(header["source"], Split(header["split"])))), {}


def _describe(task: Task, header: Header, arrays: dict[str, Array]) -> Reply:
    from cipherward.site_agent.training import weights

    records = task.load(header["source"], Split.TRAIN)
    reply = {
        "patients": records.patients,
        "records": len(records.patient_ids),
        "parameters": weights.count(weights.build(task)),
    }
    return reply, {}


def _initial_weights(task: Task, header: Header, arrays: dict[str, Array]) -> Reply:
    from cipherward.site_agent.training import weights

    return {}, {"weights": weights.initial(task, int(header["seed"]))}


_HANDLERS: dict[str, Callable[[Task, Header, dict[str, Array]], Reply]] = {
    "train": _train,
    "evaluate": _evaluate,
    "describe": _describe,
    "initial_weights": _initial_weights,
}
