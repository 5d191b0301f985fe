"""Privacy spent at this site, for its own people: ``site ledger``, and the budget in ``site policy check``. Reads
the site's database; works while the daemon runs."""

from __future__ import annotations

import math
from typing import Any

from cipherward.site_agent.daemon.constants import round_cost
from cipherward.site_agent.ledger.chain import Kind
from cipherward.site_agent.ledger.encoding import events_from_json
from cipherward.site_agent.ledger.report import describe, epsilon_left, shares, spending
from cipherward.site_agent.offline import Offline
from cipherward.site_agent.policy import limits
from cipherward.site_agent.state.studies import RUNNING


def data_set_status(site: Offline, name: str) -> dict[str, Any]:
    """What the ledger says of a data set: epsilon spent at ``delta`` by its worst patient, of which
    ceiling. None stands for infinity."""
    known = site.ledger.dataset(name)
    found: dict[str, Any] = {
        "name": name,
        "version": known.version,
        "patients": known.patients,
        "reservations": site.ledger.count(Kind.RESERVE, name),
        "lost": site.ledger.count(Kind.LOST, name),
    }
    if name not in site.policy.datasets:
        return {**found, "problem": "the policy no longer names it"}
    bounds = limits(site.policy, name, site.ledger)
    spent = site.ledger.spent(name, bounds.delta)
    return {
        **found,
        "epsilon": json_number(spent),
        "delta": bounds.delta,
        "epsilon_ceiling": json_number(bounds.ceiling),
        "epsilon_left": json_number(epsilon_left(bounds.ceiling, spent)),
    }


def ledger_status(site: Offline) -> dict[str, Any]:
    """Each data set's account, what each study took from it and when, how many rounds each running study could
    still pay for, and every event. Plain JSON values."""
    head = site.ledger.head()
    return {
        "sequence": head.sequence,
        "head": head.digest.hex(),
        "data_sets": [_account(site, known.name) for known in site.ledger.datasets()],
        "studies": [
            outlook
            for name in site.studies.names()
            for row in [site.studies.row(name)]
            if row is not None and row.state == RUNNING and (outlook := _outlook(site, name)) is not None
        ],
        "events": [
            {
                "sequence": at.sequence,
                "kind": entry.kind.value,
                "data_set": entry.dataset,
                "version": entry.version,
                "study": entry.study,
                "round": entry.round,
                "recorded_at": entry.recorded_at,
                "cost": describe(events_from_json(entry.details["events"]))
                if entry.kind is Kind.RESERVE
                else "",
                "details": entry.details,
            }
            for at, entry in site.ledger.entries()
        ],
    }


def json_number(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None


def _account(site: Offline, name: str) -> dict[str, Any]:
    """A data set's status, the studies that it paid for, and epsilon after each paid round, as it was checked
    then (None where the round was another data set's with patients in common: the next figure has it)."""
    found = data_set_status(site, name)
    if "problem" in found:
        return found
    return {
        **found,
        "studies": [
            {
                "study": share.study,
                "rounds_paid": share.rounds,
                "lost": share.lost,
                "epsilon_alone": json_number(share.epsilon),
            }
            for share in shares(site.ledger, name, found["delta"])
        ],
        "spending": [
            {
                "recorded_at": row.recorded_at,
                "study": row.study,
                "round": row.round,
                "cost": row.cost,
                "own": row.epsilon is not None,
                "epsilon": None if row.epsilon is None else json_number(row.epsilon),
            }
            for row in spending(site.ledger, name)
            if row.kind is Kind.RESERVE
        ],
    }


def _outlook(site: Offline, study: str) -> dict[str, Any] | None:
    """How far a running study's data set could still pay for it. ``rounds_left`` is None without a bound."""
    row, versions = site.studies.row(study), site.studies.versions(study)
    if row is None or versions is None or row.data_set not in site.policy.datasets:
        return None
    manifest = versions.trusts[-1].manifest
    cost, bounds = round_cost(manifest), limits(site.policy, row.data_set, site.ledger)
    left = site.ledger.remaining_rounds(row.data_set, cost, bounds.ceiling, bounds.delta) if cost else None
    return {
        "study": study,
        "data_set": row.data_set,
        "rounds": manifest.rounds,
        "rounds_paid": site.ledger.count(Kind.RESERVE, row.data_set, study),
        "rounds_to_come": max(0, manifest.rounds - row.transcript_round),
        "rounds_left": left,
    }
