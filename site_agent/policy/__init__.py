"""What this hospital allows. Its policy is its own file, and outranks every study."""

from __future__ import annotations

from cipherward.site_agent.policy.check import Finding, Limits, check, limits, require
from cipherward.site_agent.policy.facts import StudyFacts
from cipherward.site_agent.policy.model import DataSetPolicy, Policy, load
from cipherward.site_agent.policy.template import write_default

__all__ = [
    "DataSetPolicy",
    "Finding",
    "Limits",
    "Policy",
    "StudyFacts",
    "check",
    "limits",
    "load",
    "require",
    "write_default",
]
