"""Which ``Protection`` a study has: it follows from how long its suite's keys live."""

from __future__ import annotations

from collections.abc import Callable

from cipherward.crypto.suites.base import KeyLifetime
from cipherward.site_agent.daemon.protection import Protection
from cipherward.site_agent.daemon.quorum.protection import QuorumProtection
from cipherward.site_agent.daemon.shared_key import SharedKeyProtection
from cipherward.site_agent.daemon.study import Study

_OF_LIFETIME: dict[KeyLifetime, Callable[[Study], Protection]] = {
    KeyLifetime.STUDY: SharedKeyProtection,
    KeyLifetime.ATTEMPT: QuorumProtection,
}


def of_study(study: Study) -> Protection:
    """The protection for all rounds of the study: its versions keep the suite."""
    return _OF_LIFETIME[study.versions().trusts[-1].key_lifetime](study)
