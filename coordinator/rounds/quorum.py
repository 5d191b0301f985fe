"""What the quorum suite adds to the rules of a round: who is waited for, and whose updates can be opened
(quorum suite, keys and shares, rules 3 and 4)."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from cipherward.coordinator.rounds.state import Phase, Rules, State
from cipherward.crypto.manifest_rules import effective_threshold

GRACE_SECONDS = 3.0
"""How long the rest of J is waited for once enough have acknowledged, or answered. A site that died must not
cost the whole deadline in every round. Leaving a slow member out is sound: an acknowledgement can only take
dealers away from U, and t answers give the key; each answer more helps to find a wrong one, hence the wait."""


def able(state: State, site: str) -> bool:
    """Whether a member can answer for U: it must have opened every share that U dealt to it."""
    return not state.acknowledgements.get(site, frozenset()).intersection(state.contributors)


def waiting(state: State) -> bool:
    """Whether a member that can still acknowledge, or answer, has not done so."""
    if state.phase is Phase.ACKNOWLEDGE:
        return any(s not in state.acknowledgements and s not in state.revoked for s in state.plan)
    return any(s not in state.answers and s not in state.revoked and able(state, s) for s in state.plan)


def enough(rule: Rules, state: State) -> bool:
    """Whether the round could go on without whoever is still waited for."""
    if state.phase is Phase.ACKNOWLEDGE:
        return len(contributors_after_acknowledgements(rule, state)) >= rule.minimum_cohort
    return len(state.answers) >= effective_threshold(rule.threshold, len(state.plan))


def members_over(rule: Rules, state: State, limit: float, now: float) -> tuple[State, bool]:
    """Whether members are waited for no longer, and the state that knows since when there are enough."""
    if not waiting(state) or now - state.since >= limit:
        return state, True
    if not enough(rule, state):
        return (state if state.enough_since is None else replace(state, enough_since=None)), False
    if state.enough_since is None:
        return replace(state, enough_since=now), False
    return state, now - state.enough_since >= GRACE_SECONDS


def contributors_after_acknowledgements(rule: Rules, state: State) -> tuple[str, ...]:
    """U: the committed dealers, without as many as must go so that t members can open all of the rest; empty
    if fewer than t members are there to open any.

    A member can answer only if every share of U addressed to it opened. Dealers that most members complain
    about go first; a dealer that few complain about stays, and those members count as dropouts.
    """
    chosen = {site: place for place, site in enumerate(state.plan) if site in state.commits}
    members = [site for site in state.acknowledgements if site not in state.revoked]
    complaints = {m: set(state.acknowledgements[m].intersection(chosen)) for m in members}
    needed = effective_threshold(rule.threshold, len(state.plan))
    if len(members) < needed:
        return ()
    counts = Counter(dealer for bad in complaints.values() for dealer in bad)
    worst_first = sorted(counts, key=lambda dealer: (-counts[dealer], chosen[dealer]))
    happy = sum(not bad for bad in complaints.values())
    for dealer in worst_first:
        if happy >= needed:
            break
        del chosen[dealer]
        for bad in complaints.values():
            if dealer in bad:
                bad.remove(dealer)
                happy += not bad
    return tuple(chosen)
