"""The suite's public half: everything a coordinator needs. Loads neither native code nor keys."""

from __future__ import annotations

from collections.abc import Mapping

from cipherward.crypto.shared_key.adder import SharedKeyAdder
from cipherward.crypto.shared_key.params import PARAMETER_SETS, SUITE_NAME, own_params, parameters
from cipherward.crypto.suites.base import ChunkAdder, KeyLifetime, SuiteParams


class SharedKeySuite:
    """See ``cipherward.crypto.suites.base.Suite``."""

    name = SUITE_NAME
    key_lifetime = KeyLifetime.STUDY
    parameter_sets: Mapping[str, SuiteParams] = PARAMETER_SETS

    def parameters(self, name: str, bound: float | None = None, sites: int | None = None) -> SuiteParams:
        """The named set, at the study's bound and for any number of sites; UsageError for other names."""
        return parameters(name, bound)

    def chunk_adder(self, params: SuiteParams) -> ChunkAdder:
        """A new adder, with a worker process of its own."""
        return SharedKeyAdder(own_params(params))


SUITE = SharedKeySuite()
