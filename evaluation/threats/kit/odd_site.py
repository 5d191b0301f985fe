"""Runs ``cipherward`` as an agent that does one thing otherwise: ODDITY ARGUMENTS...

For rows of the evaluation only: it patches the modules of this one process.
"""

from __future__ import annotations

import sys
from typing import Any

from cipherward.cli.app import main
from cipherward.site_agent.daemon import release
from cipherward.site_agent.daemon.resync import Resync


def lying() -> None:
    """Reports another model than it has, in every round."""
    honest = release.ModelReport

    def report(**fields: Any) -> Any:
        return honest(**{**fields, "model_digest": bytes(byte ^ 1 for byte in fields["model_digest"])})

    release.ModelReport = report  # type: ignore[assignment, misc]


def stubborn() -> None:
    """Keeps the model it has, whatever the others report: resynchronisation is taken out."""
    Resync.ensure_model = lambda *_, **__: None  # type: ignore[method-assign]


ODDITIES = {"lying": lying, "stubborn": stubborn}


if __name__ == "__main__":
    ODDITIES[sys.argv.pop(1)]()
    main(sys.argv[1:])
