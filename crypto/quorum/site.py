"""The suite's half at a site: keys, shares, encryption, opening. The coordinator never imports this module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from cipherward.crypto.quorum import key as keys
from cipherward.crypto.quorum import shamir
from cipherward.crypto.quorum.cipher import QuorumCipher
from cipherward.crypto.quorum.params import own_params
from cipherward.crypto.suites.base import Combined, SecretKey, SuiteParams
from cipherward.errors import UsageError


class QuorumSite:
    """See ``cipherward.crypto.suites.base.OneTimeKeySide``."""

    def generate_key(self, params: SuiteParams, hedge: bytes) -> keys.QuorumKey:
        """A fresh key for one attempt."""
        return keys.generate(own_params(params), hedge)

    def share_bytes(self, params: SuiteParams) -> int:
        """Size of a share, and of a sum of shares."""
        own_params(params)
        return shamir.SHARE_BYTES

    def add_shares(self, params: SuiteParams, shares: Sequence[bytes]) -> bytes:
        """A member's answer: the sum of the shares that U's dealers gave it. FormatError for bad bytes."""
        own_params(params)
        return shamir.add_shares(shares)

    def combine(
        self, params: SuiteParams, answers: Mapping[int, bytes], threshold: int, contributors: int
    ) -> Iterator[Combined]:
        """Keys of the sum, within their bound, from answers by point; see the protocol for what it raises."""
        own = own_params(params)
        own.check_contributors(contributors)
        found = shamir.candidates(answers, threshold, own.key_bound(contributors))
        return (Combined(keys.SumKey(own, secret, contributors), wrong) for secret, wrong in found)

    def cipher(self, key: SecretKey, context: bytes, threads: int | None = None) -> QuorumCipher:
        """Encryption or opening under ``key`` in the plan that ``context`` names, in up to ``threads`` threads."""
        if not isinstance(key, keys.QuorumKey | keys.SumKey):
            raise UsageError(f"the key belongs to the suite {key.params.suite}")
        return QuorumCipher(key, context, threads)


SITE_SIDE = QuorumSite()
