"""The command line with the ``plain`` suite known, for the round benchmark's processes."""

from __future__ import annotations

import sys

from cipherward.crypto.suites.registry import PACKAGES


def run() -> int:
    """As ``cipherward``, with one more suite."""
    PACKAGES["plain"] = "cipherward.evaluation.bench.plain"
    from cipherward.cli.app import main

    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(run())
