"""Runs ``cipherward`` with a defence taken out, or as a coordinator that attacks: CHANGE[=VALUE],... ARGUMENTS...

For rows of the evaluation only: changes patch the modules of this one process. The product has no such switch.
"""

from __future__ import annotations

import sys

from cipherward.cli.app import main
from cipherward.evaluation.threats.kit import site_changes, sum_changes
from cipherward.evaluation.threats.kit.changes import CHANGES

MODULES = (site_changes, sum_changes)
"""They register their changes when they are loaded, and load nothing of what they change."""


def run() -> int:
    """Make the changes, KeyError for one that does not exist; run the command."""
    for item in filter(None, sys.argv[1].split(",")):
        name, _, value = item.partition("=")
        CHANGES[name](value)
    return main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(run())
