"""Runs ``cipherward`` as an agent that does one thing otherwise: ODDITY ARGUMENTS...

For rows of the evaluation only: it patches the modules of this one process.
"""

from __future__ import annotations

import sys
from typing import Any

from cipherward.cli.app import main
from cipherward.proto.v1.round_pb2 import ModelReport
from cipherward.site_agent.daemon import release
from cipherward.site_agent.daemon.resync import Resync


def lying() -> None:
    """Reports another model than it has, in every round."""

    def report(**fields: Any) -> ModelReport:
        return ModelReport(**{**fields, "model_digest": bytes(byte ^ 1 for byte in fields["model_digest"])})

    _patch(release, "ModelReport", report)


def stubborn() -> None:
    """Keeps the model it has, whatever the others report: resynchronisation is taken out."""
    _patch(Resync, "ensure_model", lambda *_, **__: None)


def _patch(owner: Any, name: str, value: Any) -> None:
    getattr(owner, name)  # what was renamed must not be missed in silence
    setattr(owner, name, value)


ODDITIES = {"lying": lying, "stubborn": stubborn}


if __name__ == "__main__":
    ODDITIES[sys.argv.pop(1)]()
    main(sys.argv[1:])
