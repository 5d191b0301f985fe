"""The rules on numbers that carry the quorum suite's security (quorum suite, rule 4), for every round that a
study allows: any n of its sites, from the minimum cohort to all, may have joined."""

from __future__ import annotations

from collections.abc import Iterator

from cipherward.crypto.manifest_rules import effective_threshold


def violations(cohort: int, threshold: int, colluders: int, sites: int) -> Iterator[tuple[str, str]]:
    """Each broken rule as (code, line). The arguments are k, t, c and the number of sites on the roster."""
    highest = effective_threshold(threshold, sites)
    least = max(highest, colluders + 2)
    if threshold > sites:
        yield "threshold-above-roster", f"the threshold {threshold} is more than the study's {sites} sites"
    if 2 * threshold <= sites:
        line = f"the threshold {threshold} is not more than half of {sites} sites: two groups could open sums"
        yield "threshold-no-majority", line
    if cohort < least:
        line = f"the minimum cohort {cohort} is below {least} (threshold {highest}, colluders {colluders})"
        yield "cohort-below-threshold", line
    for joined in range(max(cohort, 1), sites + 1):
        withstood = min(2 * effective_threshold(threshold, joined) - joined - 1, joined - 2)
        if colluders > withstood:
            line = f"with {joined} sites {max(withstood, 0)} colluding sites are withstood, not {colluders}"
            yield "too-many-colluders", line
            break
