"""Runs ``cipherward`` as an agent that does one thing otherwise: ODDITY ARGUMENTS...

For rows of the evaluation only: it patches the modules of this one process.
"""

from __future__ import annotations

import sys
from typing import Any

from cipherward.cli.app import main
from cipherward.evaluation.threats.kit.changes import patch
from cipherward.proto.v1.round_pb2 import ModelReport
from cipherward.site_agent.daemon import release
from cipherward.site_agent.daemon.resync import Resync


def lying() -> None:
    """Reports another model than it has, in every round."""

    def report(**fields: Any) -> ModelReport:
        return ModelReport(**{**fields, "model_digest": bytes(byte ^ 1 for byte in fields["model_digest"])})

    patch(release, "ModelReport", report)


def stubborn() -> None:
    """Keeps the model it has, whatever the others report: resynchronisation is taken out."""
    patch(Resync, "ensure_model", lambda *_, **__: None)


ODDITIES = {"lying": lying, "stubborn": stubborn}


if __name__ == "__main__":
    ODDITIES[sys.argv.pop(1)]()
    main(sys.argv[1:])
