"""The ledger as an admin reads it: what was spent when, on what, and what is left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cipherward.site_agent.ledger.accounting import Gaussian, PrivacyEvent
from cipherward.site_agent.ledger.chain import Kind
from cipherward.site_agent.ledger.encoding import events_from_json
from cipherward.site_agent.ledger.ledger import Ledger


@dataclass(frozen=True, slots=True)
class SpendingRow:
    """One line of `cipherward site ledger`, about one data set.

    ``epsilon``, ``ceiling`` and ``delta`` are as they were checked when the budget was reserved; None where
    nothing was spent, or where it was spent on another data set that shares patients with this one (such a
    row counts in the next epsilon). ``left`` is ``epsilon_left`` of the two.
    """

    sequence: int
    recorded_at: int  # ms since the epoch
    kind: Kind
    dataset: str
    study: str | None
    round: int | None
    cost: str
    epsilon: float | None
    ceiling: float | None
    delta: float | None
    left: float | None


@dataclass(frozen=True, slots=True)
class StudyShare:
    """What one study took from a data set. ``epsilon``: of its rounds alone; together, studies cost less than
    the sum of these figures. ``lost``: of its paid rounds, those that were aborted."""

    study: str
    rounds: int
    lost: int
    epsilon: float


def spending(ledger: Ledger, dataset: str) -> list[SpendingRow]:
    """Every event that concerns the data set's present patients, in order. Computes no epsilon: fast.

    Raises UsageError if the data set is not registered.
    """
    rows = []
    for head, entry in ledger.entries(ledger.overlapping(dataset)):
        cost, epsilon, ceiling, delta = "", None, None, None
        if entry.kind is Kind.RESERVE:
            cost = describe(events_from_json(entry.details["events"]))
            if entry.dataset == dataset:
                epsilon, ceiling, delta = (
                    float.fromhex(entry.details[name]) for name in ("epsilon", "ceiling", "delta")
                )
        elif entry.kind is Kind.REGISTER:
            cost = f"{entry.details['patients']} patients"
        rows.append(
            SpendingRow(
                sequence=head.sequence,
                recorded_at=entry.recorded_at,
                kind=entry.kind,
                dataset=entry.dataset,
                study=entry.study,
                round=entry.round,
                cost=cost,
                epsilon=epsilon,
                ceiling=ceiling,
                delta=delta,
                left=None if ceiling is None or epsilon is None else epsilon_left(ceiling, epsilon),
            )
        )
    return rows


def shares(ledger: Ledger, dataset: str, delta: float) -> list[StudyShare]:
    """Every study that the data set's present patients paid for, in the order of their first rounds, through
    whichever data set. Raises UsageError if the data set is not registered or delta is out of range."""
    paid: dict[str, list[Kind]] = {}
    for _, entry in ledger.entries(ledger.overlapping(dataset)):
        if entry.study is not None:
            paid.setdefault(entry.study, []).append(entry.kind)
    return [
        StudyShare(
            study, kinds.count(Kind.RESERVE), kinds.count(Kind.LOST), ledger.spent(dataset, delta, study)
        )
        for study, kinds in paid.items()
    ]


def epsilon_left(ceiling: float, spent: float) -> float:
    """Epsilon that may still be spent: infinite under no ceiling, whatever was spent, and never below 0."""
    return math.inf if math.isinf(ceiling) else max(0.0, ceiling - spent)


def describe(events: Sequence[PrivacyEvent]) -> str:
    """In words: ``20 steps, noise 1.1, rate 0.05 + 1 release, noise 30``."""
    out = []
    for event in events:
        noise = f"noise {event.noise_multiplier:g}" if event.noise_multiplier else "no noise"
        if isinstance(event, Gaussian):
            out.append(f"{event.count} release{'s' * (event.count > 1)}, {noise}")
        else:
            out.append(f"{event.steps} step{'s' * (event.steps > 1)}, {noise}, rate {event.sampling_rate:g}")
    return " + ".join(out)
