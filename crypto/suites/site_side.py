"""Loads the half of a suite that holds keys. The coordinator must not import this module."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from cipherward.crypto.suites.base import KeyLifetime, OneTimeKeySide, SiteSide, StudyKeySide
from cipherward.crypto.suites.registry import package, suite
from cipherward.errors import UsageError


def site_side(name: str) -> SiteSide:
    """The site's half of the suite ``name``; UsageError if there is none."""
    return cast("SiteSide", import_module(f"{package(name)}.site").SITE_SIDE)


def _of_lifetime(name: str, lifetime: KeyLifetime) -> SiteSide:
    if suite(name).key_lifetime is not lifetime:
        raise UsageError(f"suite {name} has no keys that live for one {lifetime.value}")
    return site_side(name)


def study_key_side(name: str) -> StudyKeySide:
    """The site's half of a suite with one key a study; UsageError for others."""
    return cast("StudyKeySide", _of_lifetime(name, KeyLifetime.STUDY))


def one_time_key_side(name: str) -> OneTimeKeySide:
    """The site's half of a suite with one key an attempt; UsageError for others."""
    return cast("OneTimeKeySide", _of_lifetime(name, KeyLifetime.ATTEMPT))
