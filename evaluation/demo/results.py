"""What a demo run found, as it is written to JSON and shown in the table and the report."""

from __future__ import annotations

from pydantic import BaseModel


class SiteResult(BaseModel):
    """One hospital. AUCs are on its own held-out patients, None where these all have the same label; epsilon
    and delta are from its own ledger."""

    name: str
    patients: int
    epsilon: float
    delta: float
    auc_local: float | None
    auc_federated: float | None
    auc_pooled_dp: float | None
    auc_pooled: float | None


class RoundResult(BaseModel):
    """One round, from the coordinator's own records. ``seconds`` counts from the opening to the last report,
    training included; bytes are of whole messages, a site and parameter."""

    round: int
    contributors: list[str]
    bytes_up_per_param: float
    bytes_down_per_param: float
    seconds: float
    seconds_after_join: float


class DemoResult(BaseModel):
    """The demo's JSON."""

    suite: str
    params: str
    trust: str
    """Who can open an update."""
    parameters: int
    epsilon_ceiling: float
    sites: list[SiteResult]
    auc_pooled_dp: float
    auc_pooled: float
    rounds: list[RoundResult]
    noisy_accuracy: list[float]
    seconds_setup: float
    seconds_study: float
    seconds_reference: float


def figure(value: float | None) -> str:
    """An AUC for people."""
    return "-" if value is None else f"{value:.3f}"
