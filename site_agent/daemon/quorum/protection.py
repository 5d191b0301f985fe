"""``Protection`` by one-time keys. Each attempt has a key of its own; only the sum of U's keys is ever rebuilt,
from the answers of t members, and only in the memory of sites."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cipherward.crypto.labels import Label, framed
from cipherward.crypto.quorum.sealed import Dealing
from cipherward.crypto.records import Closed, Plan, StudyTrust
from cipherward.crypto.suites.base import OneTimeKey, SiteCipher
from cipherward.crypto.suites.site_side import one_time_key_side
from cipherward.errors import ProtocolError, VerificationError
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.round_pb2 import Commit, Join
from cipherward.site_agent.daemon.quorum.acknowledging import acknowledge, dealing_of
from cipherward.site_agent.daemon.quorum.answering import answer, combined_keys, report_wrong
from cipherward.site_agent.daemon.quorum.checking import Checking
from cipherward.site_agent.daemon.quorum.secrets import RoundSecret, RoundSecrets
from cipherward.site_agent.daemon.study import Study
from cipherward.site_agent.daemon.sums import StoredSum, Sums


def plan_context(trust: StudyTrust, plan: Plan) -> bytes:
    """What the public polynomials follow from."""
    return framed(Label.PUBLIC_POLYNOMIAL, trust.digest, plan.digest)


class _Encryption:
    """See ``daemon.protection.Encryption``."""

    def __init__(
        self, cipher: SiteCipher, key: OneTimeKey, plan: Plan, dealing: Callable[[bytes], Dealing]
    ) -> None:
        """``dealing``: what shares are sealed with, by the ciphertext root."""
        self._cipher, self._key, self._plan, self._dealing = cipher, key, plan, dealing

    def encrypt(self, vector: NDArray[np.floating[Any]]) -> Iterator[bytes]:
        """The chunks."""
        return self._cipher.encrypt(vector)

    def shares(self, ciphertext_root: bytes) -> list[bytes]:
        """The key's shares, sealed to the round keys of J and to these ciphertexts."""
        dealing = self._dealing(ciphertext_root)
        shares = self._key.deal(dealing.threshold, len(dealing.members))
        return dealing.seal([join.round_key for join in self._plan.joins.values()], shares)


class QuorumProtection:
    """See ``daemon.protection.Protection``."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._secrets = RoundSecrets()
        self._sums = Sums(study)
        self._checking = Checking(study)

    def prepare(self, trust: StudyTrust) -> None:
        """Nothing: keys are made when they are needed."""

    def join_fields(self, trust: StudyTrust, round_number: int) -> dict[str, bytes]:
        """A fresh round key, in memory until the round is over."""
        limits = trust.manifest.deadlines
        longest = (
            2 * limits.join_window + limits.upload + limits.acknowledge + limits.unseal + 2 * limits.verify
        )
        return {"round_key": self._secrets.fresh(round_number, longest).key.public()}

    def holds(self, round_number: int, join: Signed) -> bool:
        """Whether the private half of the join's round key is here."""
        return self._secrets.holding(round_number, Join.FromString(join.payload).round_key) is not None

    def check_plan(self, trust: StudyTrust, plan: Plan) -> None:
        """``verify_plan`` has checked all there is: n, t and the round keys."""

    @contextmanager
    def begin(
        self, trust: StudyTrust, plan: Plan, attempt: int, update_digest: bytes
    ) -> Iterator[_Encryption]:
        """Encrypt under a fresh key, which is gone when the context ends."""
        suite, name = trust.manifest.suite, self._study.site.name
        side = one_time_key_side(suite.name)
        named = (trust.digest, plan.digest, name.encode(), attempt.to_bytes(4, "big"), update_digest)
        key = side.generate_key(trust.params, framed(Label.ATTEMPT_KEY, *named))

        def dealing(root: bytes) -> Dealing:
            return dealing_of(trust, plan, Commit(site=name, attempt=attempt, ciphertext_root=root))

        with side.cipher(key, plan_context(trust, plan)) as cipher:
            yield _Encryption(cipher, key, plan, dealing)

    def acknowledge(self, round_number: int) -> None:
        """Open the shares addressed to this site, and say which opened."""
        secret = self._member(round_number)
        if secret is not None:
            acknowledge(self._study, round_number, secret)

    def unseal(self, round_number: int) -> None:
        """Answer the round's one U; then add up this site's part of the chunks, while others answer."""
        secret = self._member(round_number)
        if secret is None:
            return
        closed = self._study.closing(round_number)
        if not isinstance(closed, Closed):
            return
        answer(self._study, round_number, closed, secret)
        if self._study.trust(round_number).manifest.collective_verification:
            self._checking.check_own_part(round_number, closed, self._sums.get(round_number, closed))

    def open(self, round_number: int, closed: Closed, total: StoredSum) -> NDArray[np.float64]:
        """Only a sum that enough sites added up themselves, with the key that enough members answered for."""
        secret, trust = self._member(round_number), self._study.trust(round_number)
        if secret is None:
            raise ProtocolError(
                f"this site cannot open round {round_number}",
                why="its round key is gone: it joined, and was started again since",
            )
        if trust.manifest.collective_verification:
            self._checking.wait_until_covered(round_number, closed, total)
        side, context = one_time_key_side(trust.manifest.suite.name), plan_context(trust, closed.plan)
        refusal: VerificationError | None = None
        for combined in combined_keys(self._study, round_number, closed, secret):
            with side.cipher(combined.key, context) as cipher:
                try:
                    values = cipher.open_sum(total.chunks(), total.length, len(closed.cohort))
                except VerificationError as error:
                    # Crafted answers can give a key within its bound; the zero elements tell it from the right
                    # one, which may be the next.
                    refusal = error
                    continue
            report_wrong(self._study, round_number, closed, combined)
            return values
        raise refusal or VerificationError(f"the answers of round {round_number} give no key")

    def forget(self, round_number: int) -> None:
        """Round key and shares are gone."""
        self._secrets.forget(round_number)
        self._checking.forget()

    def serve(self, trust: StudyTrust, wanted_by: list[str]) -> None:
        """Nobody asks for keys here."""

    def _member(self, round_number: int) -> RoundSecret | None:
        """The round's secret if this site is in the plan with it."""
        entry = self._study.journal.entry(round_number)
        if entry.join_record is None:
            return None
        own = self._study.plan(round_number).joins.get(self._study.site.name)
        return None if own is None else self._secrets.holding(round_number, own.round_key)
