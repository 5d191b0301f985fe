"""The suites there are. A new suite is one package and one line here.

Its module ``public`` has ``SUITE`` (what a coordinator needs), its module ``site`` has ``SITE_SIDE`` (what
holds keys; loaded by ``cipherward.crypto.suites.site_side``, never from here).
"""

from __future__ import annotations

from importlib import import_module
from typing import cast

from cipherward.crypto.suites.base import Suite
from cipherward.errors import UsageError

PACKAGES = {
    "quorum": "cipherward.crypto.quorum",
    "shared-key": "cipherward.crypto.shared_key",
}


def package(name: str) -> str:
    """The package of the suite ``name``; UsageError if there is none."""
    if name not in PACKAGES:
        raise UsageError(
            f"there is no suite {name[:80]!r}", why=f"this version has {', '.join(sorted(PACKAGES))}"
        )
    return PACKAGES[name]


def suite(name: str) -> Suite:
    """The public half of the suite ``name``; UsageError if there is none."""
    return suite_in(package(name))


def suite_in(package: str) -> Suite:
    """The public half of the suite in that package."""
    return cast("Suite", import_module(f"{package}.public").SUITE)
