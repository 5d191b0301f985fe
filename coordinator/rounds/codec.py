"""States as JSON text, for the store."""

from __future__ import annotations

import json
from typing import Any

from cipherward.coordinator.rounds.state import Committed, Joining, Life, Phase, State


def encode(state: State) -> str:
    """The state as JSON."""
    return json.dumps(
        {
            "round": state.round,
            "phase": state.phase.value,
            "since": state.since,
            "model": state.model.hex(),
            "model_round": state.model_round,
            "life": state.life.value,
            "reason": state.reason,
            "keys": sorted(state.keys),
            "revoked": sorted(state.revoked),
            "joins": {site: [item.record.hex(), item.shared_key.hex()] for site, item in state.joins.items()},
            "plan": list(state.plan),
            "commits": {site: [item.attempt, item.record.hex()] for site, item in state.commits.items()},
            "acknowledgements": {site: sorted(bad) for site, bad in state.acknowledgements.items()},
            "enough_since": state.enough_since,
            "contributors": list(state.contributors),
            "answers": {site: record.hex() for site, record in state.answers.items()},
            "reports": {site: model.hex() for site, model in state.reports.items()},
        },
        separators=(",", ":"),
    )


def decode(text: str) -> State:
    """The state that ``encode`` wrote."""
    raw: dict[str, Any] = json.loads(text)
    return State(
        round=raw["round"],
        phase=Phase(raw["phase"]),
        since=raw["since"],
        model=bytes.fromhex(raw["model"]),
        model_round=raw["model_round"],
        life=Life(raw["life"]),
        reason=raw["reason"],
        keys=frozenset((version, site) for version, site in raw["keys"]),
        revoked=frozenset(raw["revoked"]),
        joins={
            site: Joining(bytes.fromhex(record), bytes.fromhex(key))
            for site, (record, key) in raw["joins"].items()
        },
        plan=tuple(raw["plan"]),
        commits={
            site: Committed(attempt, bytes.fromhex(record))
            for site, (attempt, record) in raw["commits"].items()
        },
        acknowledgements={site: frozenset(bad) for site, bad in raw["acknowledgements"].items()},
        enough_since=raw["enough_since"],
        contributors=tuple(raw["contributors"]),
        answers={site: bytes.fromhex(record) for site, record in raw["answers"].items()},
        reports={site: bytes.fromhex(model) for site, model in raw["reports"].items()},
    )
