"""What the quorum suite adds to the rules of a round (quorum suite, keys and shares, rules 3 and 4)."""

from __future__ import annotations

from collections import Counter

from cipherward.coordinator.rounds.state import Rules, State
from cipherward.crypto.manifest_rules import effective_threshold


def contributors_after_acknowledgements(rule: Rules, state: State) -> tuple[str, ...]:
    """U: the committed dealers, without as many as must go so that t members can open all of the rest.

    A member can answer only if every share of U addressed to it opened. Dealers that most members complain
    about go first; a dealer that few complain about stays, and those members count as dropouts.
    """
    chosen = [site for site in state.plan if site in state.commits]
    needed = effective_threshold(rule.threshold, len(state.plan))
    while chosen:
        able = sum(not bad.intersection(chosen) for bad in state.acknowledgements.values())
        complaints = Counter(
            dealer for bad in state.acknowledgements.values() for dealer in bad if dealer in chosen
        )
        if able >= needed or not complaints:
            return tuple(chosen) if able >= needed else ()
        most = max(complaints.values())
        chosen.remove(next(site for site in chosen if complaints[site] == most))
    return ()
