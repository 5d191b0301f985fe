"""Who can open an update, in one line: what whoever signs a study, or accepts one, should have read."""

from __future__ import annotations

from cipherward.crypto.strategies import SHARED_NOISE
from cipherward.crypto.suites.base import KeyLifetime
from cipherward.crypto.suites.registry import suite
from cipherward.proto.v1.study_pb2 import Manifest


def trust_statement(manifest: Manifest) -> str:
    """For a checked manifest: ``Suite NAME: ...`` (docs/quorum.md and SECURITY.md say it at length)."""
    name = manifest.suite.name
    if suite(name).key_lifetime is KeyLifetime.STUDY:
        said = "every site holds the key: one site together with the coordinator can open every update."
        return f"Suite {name}: {said}"
    sites, needed, withstood = len(manifest.roster), manifest.threshold, manifest.colluders
    who = "The coordinator" + (f" with {withstood} site{'s' * (withstood != 1)}" if withstood else " alone")
    said = f"{needed} of {sites} sites open a sum. {who} cannot open a single update, any {needed} sites can."
    if not manifest.collective_verification:
        said += " The coordinator can alter a sum: the sites do not add it up themselves."
    if manifest.strategy.name == SHARED_NOISE:
        several = f"{withstood} site{'s' * (withstood != 1)}"
        said += f" The sites share the noise: epsilon holds against the coordinator with up to {several}, no more."
    return f"Suite {name}: {said}"
