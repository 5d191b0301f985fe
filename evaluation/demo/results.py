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


class AuditResult(BaseModel):
    """What ``cipherward audit verify`` found right. All hospitals hold the transcript that it found."""

    closed_rounds: int
    signatures: int
    """Of sites: joins, commits, model reports."""
    sums_added_up: int
    not_added_up: list[str]
    """Why the other sums were not added up again."""
    transcript: str

    def text(self) -> str:
        """For people, in one line."""
        rest = "".join(f"; the others not: {reason}" for reason in self.not_added_up)
        return (
            f"audit: {self.signatures} signatures of sites right, {self.sums_added_up} of {self.closed_rounds} sums "
            f"added up again and right{rest}; one transcript at all sites, {self.transcript[:16]}"
        )


class SharedNoiseResult(BaseModel):
    """Noise multipliers (units of the clipping norm) where the sites share the noise of a round."""

    promised: float
    """sigma: what epsilon counts, with as few contributors and as many colluders as the manifest allows."""
    realised: list[float]
    """What the sum of each round has, for whoever contributed to none of it."""
    one_site: float
    minimum_cohort: int
    colluders: int

    def text(self) -> str:
        """For people, in one line."""
        least, most = min(self.realised), max(self.realised)
        found = f"{least:.2f}" if least == most else f"{least:.2f} to {most:.2f}"
        return (
            f"noise shared by the sites, in clipping norms: promised {self.promised:.2f} (at least "
            f"{self.minimum_cohort} contribute, {self.colluders} of them may collude), realised {found}, one site's "
            f"part {self.one_site:.2f}"
        )


class DemoResult(BaseModel):
    """The demo's JSON."""

    suite: str
    params: str
    trust: str
    """Who can open an update."""
    strategy: str
    parameters: int
    epsilon_ceiling: float
    sites: list[SiteResult]
    auc_pooled_dp: float
    auc_pooled: float
    rounds: list[RoundResult]
    shared_noise: SharedNoiseResult | None
    """Where the sites share the noise (dp-fedsgd)."""
    noisy_accuracy: list[float]
    audit: AuditResult
    seconds_setup: float
    seconds_study: float
    seconds_reference: float


def figure(value: float | None) -> str:
    """An AUC for people."""
    return "-" if value is None else f"{value:.3f}"
