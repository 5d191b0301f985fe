"""Which ciphertexts of ended rounds are kept, so that somebody can add them up again (``audit verify``).

Records, joins and commits stay for good. Shares, acknowledgements and answers never outlive their round: without
them nobody can put the one-time keys of the quorum suite together again, not even from seized machines.
"""

from __future__ import annotations

from contextlib import suppress

from cipherward.coordinator.daemon.view import (
    answer_prefix,
    round_of_set,
    share_prefix,
    update_prefix,
    update_set,
)
from cipherward.coordinator.store.database import Transaction
from cipherward.coordinator.store.studies import ACKNOWLEDGEMENT, ANSWER, SUM_CHECK
from cipherward.crypto.labels import Label
from cipherward.crypto.records import StudyTrust
from cipherward.crypto.signing import verify
from cipherward.crypto.suites.base import KeyLifetime
from cipherward.errors import VerificationError
from cipherward.proto.v1.coordinator_pb2 import RECORD_KIND_CLOSE
from cipherward.proto.v1.round_pb2 import CloseRecord

KEPT_ROUNDS = {KeyLifetime.ATTEMPT: 10, KeyLifetime.STUDY: 1}
"""Ended rounds whose updates are kept. Under a key of the study's, whoever steals it from any hospital opens every
update that is still here: no more than one round beside the one in progress."""


class Retention:
    """What is dropped when."""

    def __init__(self, keep_rounds: int | None) -> None:
        """``keep_rounds``: ended rounds in any suite, 0 or more; None: ``KEPT_ROUNDS``."""
        self._keep_rounds = keep_rounds

    def rounds(self, trust: StudyTrust) -> int:
        """How many ended rounds of such a study keep their updates."""
        return KEPT_ROUNDS[trust.key_lifetime] if self._keep_rounds is None else self._keep_rounds

    def end(self, t: Transaction, study: str, trust: StudyTrust, number: int) -> list[str]:
        """Forget what nobody needs of the round that ended, and what is too old; returns the blobs to delete
        after the transaction. ``trust``: the round's."""
        t.studies.drop_posts(study, number, (ACKNOWLEDGEMENT, ANSWER, SUM_CHECK))
        kept = self._summed(t, study, trust, number)
        names = [
            name
            for prefix in (update_prefix, share_prefix, answer_prefix)
            for name in t.chunks.names(prefix(study, number))
            if name not in kept
        ]
        blobs = [blob for name in names for blob in t.chunks.drop(name)]
        return blobs + self.expire(t, study, trust, number)

    def expire(self, t: Transaction, study: str, trust: StudyTrust, number: int) -> list[str]:
        """Forget what is too old now that round ``number`` is the last that ended; returns the blobs."""
        keep = self.rounds(trust)
        # A sum stays for one round in any case, for sites that are a little behind.
        last_update, last_sum = number - keep, number - max(keep, 1)
        blobs = []
        for name in t.chunks.names(f"{study}/"):
            round_number = round_of_set(name)
            if round_number and round_number <= (last_sum if name.endswith("/sum") else last_update):
                blobs += t.chunks.drop(name)
        return blobs

    def _summed(self, t: Transaction, study: str, trust: StudyTrust, number: int) -> set[str]:
        """The chunk sets that went into the round's sum, if it has one."""
        ending = t.studies.record(study, number, RECORD_KIND_CLOSE)
        with suppress(VerificationError):  # an abort record lies in its place
            if ending is not None:
                close = verify(
                    ending, Label.CLOSE_RECORD, trust.manifest.coordinator.signing_key, CloseRecord
                )
                return {update_set(study, number, item.site, item.attempt) for item in close.contributions}
        return set()
