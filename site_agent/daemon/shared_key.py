"""``Protection`` by one key that all sites of the study hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cipherward.crypto.records import Closed, Plan, StudyTrust
from cipherward.crypto.suites.base import SiteCipher
from cipherward.crypto.suites.site_side import site_side
from cipherward.errors import ProtocolError, VerificationError
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.site_agent.daemon.keys import SharedKeys
from cipherward.site_agent.daemon.study import Study
from cipherward.site_agent.daemon.sums import StoredSum


class _Encryption:
    """See ``protection.Encryption``."""

    def __init__(self, cipher: SiteCipher) -> None:
        self._cipher = cipher

    def encrypt(self, vector: NDArray[np.floating[Any]]) -> Iterator[bytes]:
        """The chunks."""
        return self._cipher.encrypt(vector)

    def shares(self, ciphertext_root: bytes) -> list[bytes]:
        """None: everybody has the key."""
        return []


class SharedKeyProtection:
    """See ``protection.Protection``."""

    def __init__(self, study: Study) -> None:
        self.keys = SharedKeys(study)
        self._study = study

    def prepare(self, trust: StudyTrust) -> None:
        """The key is here, or made here."""
        self.keys.get(trust)

    def join_fields(self, trust: StudyTrust, round_number: int) -> dict[str, bytes]:
        """The key's digest: all of a plan must hold the same."""
        return {"shared_key_digest": self.keys.get(trust).digest(trust.digest)}

    def holds(self, round_number: int, join: Signed) -> bool:
        """Always: the key is on disk."""
        return True

    def check_plan(self, trust: StudyTrust, plan: Plan) -> None:
        """All of the plan hold the key that this site holds."""
        own = self.keys.get(trust).digest(trust.digest)
        # verify_plan has compared them with each other; this compares them with the key in use.
        if any(join.shared_key_digest != own for join in plan.joins.values()):
            raise VerificationError("the sites of the plan hold another shared key than this site")

    @contextmanager
    def begin(
        self, trust: StudyTrust, plan: Plan, attempt: int, update_digest: bytes
    ) -> Iterator[_Encryption]:
        """Encrypt under the study's key."""
        with site_side(trust.manifest.suite.name).cipher(self.keys.get(trust), b"") as cipher:
            yield _Encryption(cipher)

    def acknowledge(self, round_number: int) -> None:
        """There is no such step."""
        raise _no_such_step("acknowledgement")

    def unseal(self, round_number: int) -> None:
        """There is no such step."""
        raise _no_such_step("answer")

    def open(self, round_number: int, closed: Closed, total: StoredSum) -> NDArray[np.float64]:
        """With the key that every site has."""
        trust = self._study.trust(round_number)
        with site_side(trust.manifest.suite.name).cipher(self.keys.get(trust), b"") as cipher:
            return cipher.open_sum(total.chunks(), total.length, len(closed.cohort))

    def forget(self, round_number: int) -> None:
        """The key belongs to the study."""

    def serve(self, trust: StudyTrust, wanted_by: list[str]) -> None:
        """As its maker, seal the key to those that have none."""
        self.keys.serve(trust, wanted_by)


def _no_such_step(what: str) -> ProtocolError:
    return ProtocolError(f"the coordinator asks for an {what}", why="the study's suite has no such step")
