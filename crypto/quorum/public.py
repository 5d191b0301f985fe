"""The suite's public half: everything a coordinator needs. Loads no keys."""

from __future__ import annotations

from collections.abc import Mapping

from cipherward.crypto.quorum.adder import QuorumAdder
from cipherward.crypto.quorum.params import PARAMETER_SETS, SUITE_NAME, own_params, parameters
from cipherward.crypto.suites.base import ChunkAdder, KeyLifetime, SuiteParams


class QuorumSuite:
    """See ``cipherward.crypto.suites.base.Suite``."""

    name = SUITE_NAME
    key_lifetime = KeyLifetime.ATTEMPT
    parameter_sets: Mapping[str, SuiteParams] = PARAMETER_SETS

    def parameters(self, name: str, bound: float | None = None, sites: int | None = None) -> SuiteParams:
        """The named set, as finely encoded as ``sites`` allow; UsageError for other names, bounds, sites."""
        return parameters(name, bound, sites)

    def chunk_adder(self, params: SuiteParams) -> ChunkAdder:
        """A new adder, in this process."""
        return QuorumAdder(own_params(params))


SUITE = QuorumSuite()
