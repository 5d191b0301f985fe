"""Loads the half of a suite that holds keys. The coordinator must not import this module."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from cipherward.crypto.suites.base import SiteSide
from cipherward.crypto.suites.registry import package


def site_side(name: str) -> SiteSide:
    """The site's half of the suite ``name``; UsageError if there is none."""
    return cast("SiteSide", import_module(f"{package(name)}.site").SITE_SIDE)
