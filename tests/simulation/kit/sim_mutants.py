"""Mistakes that a coordinator or a site could make, each put in by patching one function. A simulation that is worth
its time finds every one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sim_coordinator import Coordinator
from sim_journal import Journal
from sim_records import Answer
from sim_site import Participant

from cipherward.coordinator.rounds import codec, events, machine, quorum
from cipherward.coordinator.rounds.state import Committed, Phase, State

Patch = pytest.MonkeyPatch
MUTANTS: dict[str, Callable[[Patch], None]] = {}


def mutant(make: Callable[[Patch], None]) -> Callable[[Patch], None]:
    MUTANTS[make.__name__] = make
    return make


def _decoded(patch: Patch, change: Callable[[State], State]) -> None:
    decode = codec.decode
    patch.setattr(codec, "decode", lambda text: change(decode(text)))


def _handled(patch: Patch, event: type[Any], change: Callable[..., Any]) -> None:
    patch.setitem(machine._HANDLERS, event, change)


@mutant
def accepts_late_commits(patch: Patch) -> None:
    def commit(_rules: Any, state: State, event: Any, _now: float) -> Any:
        machine._same_round(state, event.round, "commit")
        made = Committed(event.attempt, event.record)
        return replace(state, commits={**state.commits, event.site: made}), ()

    _handled(patch, events.CommitPosted, commit)


@mutant
def forgets_a_commit_at_a_restart(patch: Patch) -> None:
    _decoded(patch, lambda state: replace(state, commits=dict(list(state.commits.items())[:-1])))


@mutant
def forgets_an_acknowledgement_at_a_restart(patch: Patch) -> None:
    _decoded(
        patch, lambda state: replace(state, acknowledgements=dict(list(state.acknowledgements.items())[:-1]))
    )


@mutant
def forgets_an_answer_at_a_restart(patch: Patch) -> None:
    _decoded(patch, lambda state: replace(state, answers=dict(list(state.answers.items())[:-1])))


@mutant
def forgets_a_key_at_a_restart(patch: Patch) -> None:
    _decoded(patch, lambda state: replace(state, keys=frozenset(sorted(state.keys)[1:])))


@mutant
def forgets_a_report_at_a_restart(patch: Patch) -> None:
    _decoded(patch, lambda state: replace(state, reports={}))


@mutant
def forgets_joins_at_a_restart(patch: Patch) -> None:
    _decoded(patch, lambda state: replace(state, joins={}))


@mutant
def sums_what_is_uploaded_and_not_what_is_committed(patch: Patch) -> None:
    fix = machine._fix_contributors
    patch.setattr(machine, "_fix_contributors", lambda state, _chosen, now: fix(state, state.plan, now))


@mutant
def changes_u_after_a_restart(patch: Patch) -> None:
    def change(state: State) -> State:
        closed = state.phase in (Phase.UNSEAL, Phase.RELEASE)
        return replace(state, contributors=state.contributors[:-1]) if closed else state

    _decoded(patch, change)


@mutant
def changes_u_before_the_sum_is_made_again(patch: Patch) -> None:
    def change(state: State) -> State:
        summing = state.phase is Phase.SUM
        return replace(state, contributors=state.contributors[:-1]) if summing else state

    _decoded(patch, change)


@mutant
def counts_a_repeated_commit_twice(patch: Patch) -> None:
    commit, repeat = machine._commit, Coordinator._repeat

    def counted(rules: Any, state: State, event: Any, now: float) -> Any:
        known = state.commits.get(event.site)
        if known is not None and known.record == event.record and state.phase is Phase.UPLOAD:
            return replace(state, plan=(*state.plan, event.site)), ()
        return commit(rules, state, event, now)

    _handled(patch, events.CommitPosted, counted)
    patch.setattr(
        Coordinator,
        "_repeat",
        lambda self, study, kind, record: kind != "commit" and repeat(self, study, kind, record),
    )


@mutant
def takes_a_second_commit_in_place_of_the_first(patch: Patch) -> None:
    def commit(_rules: Any, state: State, event: Any, _now: float) -> Any:
        machine._same_round(state, event.round, "commit")
        machine._in_phase(state, Phase.UPLOAD, "commit", event.site)
        made = Committed(event.attempt, event.record)
        return replace(state, commits={**state.commits, event.site: made}), ()

    _handled(patch, events.CommitPosted, commit)
    patch.setattr(Coordinator, "_repeat", lambda self, study, kind, record: False)


@mutant
def closes_a_round_again_for_a_sum_that_comes_twice(patch: Patch) -> None:
    summed = machine._summed

    def again(rules: Any, state: State, event: Any, now: float) -> Any:
        if event.round == state.round and state.phase in (Phase.UNSEAL, Phase.RELEASE):
            state = replace(state, phase=Phase.SUM)
        return summed(rules, state, event, now)

    _handled(patch, events.Summed, again)


@mutant
def takes_a_late_sum_for_the_next_round(patch: Patch) -> None:
    summed = machine._summed
    _handled(
        patch,
        events.Summed,
        lambda rules, state, event, now: summed(rules, state, replace(event, round=state.round), now),
    )


@mutant
def does_not_make_an_owed_sum(patch: Patch) -> None:
    patch.setattr(machine, "owed", lambda _state: None)


@mutant
def keeps_the_deadlines_of_another_boot(patch: Patch) -> None:
    _handled(patch, events.Restarted, lambda _rules, state, _event, _now: (state, ()))


@mutant
def plans_a_round_again_after_a_restart(patch: Patch) -> None:
    def change(state: State) -> State:
        early = state.phase is Phase.UPLOAD and not state.commits
        return replace(state, phase=Phase.OPEN, plan=()) if early else state

    _decoded(patch, change)


@mutant
def believes_a_single_report(patch: Patch) -> None:
    patch.setattr(machine, "agreement_needed", lambda _colluders, _others: 1)


@mutant
def does_not_hear_complaints(patch: Patch) -> None:
    patch.setattr(
        quorum,
        "contributors_after_acknowledgements",
        lambda _rule, state: tuple(site for site in state.plan if site in state.commits),
    )


@mutant
def uses_a_round_number_twice(patch: Patch) -> None:
    settle = machine._settle

    def same(rules: Any, state: State, now: float, number: int) -> Any:
        return settle(rules, state, now, number - (state.phase is Phase.UPLOAD))

    patch.setattr(machine, "_settle", same)


@mutant
def a_site_answers_twice(patch: Patch) -> None:
    answer = Participant._answer

    def forgetful(self: Participant, number: int) -> None:
        if self.secret is not None:
            self.secret.answer = None
        answer(self, number)

    patch.setattr(Participant, "_answer", forgetful)


@mutant
def a_site_answers_before_it_journals(patch: Patch) -> None:
    """And what it answers is not the close record that it has read."""
    answer = Participant._answer

    def careless(self: Participant, number: int) -> None:
        answer(self, number)
        if self.secret is not None and self.secret.answer is not None:
            self._post("answer", Answer(*self.secret.answer[:-1], vector=0))

    patch.setattr(Participant, "_answer", careless)


@mutant
def a_site_uses_a_key_for_two_encryptions(patch: Patch) -> None:
    following = Journal.next_attempt

    def stuck(self: Journal, number: int) -> int:
        following(self, number)
        return 1

    patch.setattr(Journal, "next_attempt", stuck)


@mutant
def a_site_forgets_its_commit(patch: Patch) -> None:
    """At a restart, and trains and uploads anew."""
    restart = Participant.restart

    def forgetful(self: Participant) -> None:
        restart(self)
        for number, entry in list(self.journal._entries.items()):
            if entry.closing_record is None:
                lost = {"commit_record": None, "ciphertext_root": None}
                self.journal._entries[number] = entry.with_values(lost)

    patch.setattr(Participant, "restart", forgetful)


@mutant
def a_site_keeps_the_model_of_a_round_that_was_given_up(patch: Patch) -> None:
    patch.setattr(Participant, "_go_back", lambda self, standing: True)


@mutant
def a_site_waits_for_the_model_of_a_round_that_was_given_up(patch: Patch) -> None:
    patch.setattr(Participant, "_stands", lambda self, entry, current, *, ended: True)
