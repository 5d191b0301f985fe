"""What a policy needs to know of a study: facts from its signed manifest, and nothing of how it travels."""

from __future__ import annotations

from dataclasses import dataclass

from cipherward.site_agent.ledger.accounting import PrivacyEvent


@dataclass(frozen=True, slots=True)
class StudyFacts:
    """A study version, as signed."""

    study: str
    version: int
    suite: str
    parameters: str
    strategy: str
    task: str
    task_digest: bytes
    sites: tuple[str, ...]
    minimum_cohort: int  # k
    threshold: int  # t; quorum suite
    colluders: int  # c; quorum suite
    honest: int  # h: so many sites share one round's noise; 0 where each site adds all of it
    rounds: int
    dp: bool
    per_round: tuple[PrivacyEvent, ...]  # what one round costs; empty where DP is off
    delta: float  # that the study states its guarantee at; ignored where DP is off
