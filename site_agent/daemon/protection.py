"""How a study's updates are protected, as the daemon sees it: what differs between suites in a site's part of a
round stands behind ``Protection``; ``of_study`` chooses by how long the suite's keys live."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cipherward.crypto.records import Closed, Plan, StudyTrust
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.site_agent.daemon.sums import StoredSum


class Encryption(Protocol):
    """One attempt: one update under one key."""

    def encrypt(self, vector: NDArray[np.floating[Any]]) -> Iterator[bytes]:
        """The chunks to upload, in order."""

    def shares(self, ciphertext_root: bytes) -> list[bytes]:
        """The sealed shares of the attempt's key, for the members of J in order; none where keys are not
        shared. ``ciphertext_root``: of the chunks."""


class Protection(Protocol):
    """A suite at work in one study."""

    def prepare(self, trust: StudyTrust) -> None:
        """Have what must be there before a site trains. UnavailableError while it is not."""

    def join_fields(self, trust: StudyTrust, round_number: int) -> dict[str, bytes]:
        """What the suite puts into this site's join."""

    def holds(self, round_number: int, join: Signed) -> bool:
        """Whether a join made earlier is still good: what it promised is still here."""

    def check_plan(self, trust: StudyTrust, plan: Plan) -> None:
        """Raises VerificationError for a plan under which this site must not encrypt."""

    def begin(
        self, trust: StudyTrust, plan: Plan, attempt: int, update_digest: bytes
    ) -> AbstractContextManager[Encryption]:
        """Encrypt under a number that is journalled as this attempt's."""

    def acknowledge(self, round_number: int) -> None:
        """Step 4. ProtocolError where the suite has no such step."""

    def unseal(self, round_number: int) -> None:
        """Step 6. ProtocolError where the suite has no such step."""

    def open(self, round_number: int, closed: Closed, total: StoredSum) -> NDArray[np.float64]:
        """Step 7: the values of the sum, verified as far as the suite can tell.

        UnavailableError while something is missing, ProtocolError if this site cannot open the round at all,
        VerificationError if it is not the right sum.
        """

    def forget(self, round_number: int) -> None:
        """The round is over for this site: drop what was kept in memory for it and those before."""

    def serve(self, trust: StudyTrust, wanted_by: list[str]) -> None:
        """Keys that other sites ask this one for."""
