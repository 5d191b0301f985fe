"""The transitions one by one: who is waited for, how long, and what is refused when."""

from __future__ import annotations

from dataclasses import replace

import pytest
from kit_round_machine import SITES, Run, make

from cipherward.coordinator.rounds import events
from cipherward.coordinator.rounds.effects import (
    Discard,
    SignAbort,
    SignClose,
    SignPlan,
    SignRound,
    StartSum,
)
from cipherward.coordinator.rounds.machine import keys_missing, owed, seconds_left
from cipherward.coordinator.rounds.state import Life, Phase, State, StudyRules
from cipherward.errors import ConflictError, LateError, ProtocolError


def test_keys_come_first_in_the_shared_key_suite_only() -> None:
    shared, quorum = Run(make()), Run(make(quorum=True))
    assert shared.state.phase is Phase.KEYS and shared.effects == ()
    assert keys_missing(shared.rules, shared.state, 1) == SITES
    shared.keys()
    assert shared.state.phase is Phase.OPEN and shared.effects == (SignRound(1, b"m0"),)
    assert quorum.state.phase is Phase.OPEN and quorum.effects == (SignRound(1, b"m0"),)


def test_a_round_from_open_to_the_next() -> None:
    run = Run(make()).keys()
    assert run.join(*SITES) == (SignPlan(1, SITES),)
    assert run.commit(*SITES) == (StartSum(1, SITES),)
    assert owed(run.state) == StartSum(1, SITES)
    assert run(events.Summed(1, b"root", 7)) == (SignClose(1, SITES, b"root", 7),)
    assert run.state.phase is Phase.RELEASE and owed(run.state) is None
    for site in SITES:
        effects = run(events.ReportPosted(site, 1, b"m1"))
    assert effects == (Discard(1), SignRound(2, b"m1"))
    assert (run.state.round, run.state.model_round, run.state.model) == (2, 1, b"m1")
    assert not run.state.joins and not run.state.commits


def test_the_join_window() -> None:
    run = Run(make()).keys()
    run.join("c", "a")
    assert run(events.Ticked(), 59.9) == ()
    assert seconds_left(run.rules, run.state, 59.0) == pytest.approx(1.0)
    assert run(events.Ticked(), 60) == (SignPlan(1, ("a", "c")),), "roster order, not arrival order"
    with pytest.raises(LateError, match="CW-520"):
        run.join("b")


def test_too_few_joins_wait_once_more_then_abort_the_round() -> None:
    run = Run(make()).keys()
    run.join("a")
    assert run(events.Ticked(), 60) == () and run.state.phase is Phase.OPEN
    assert seconds_left(run.rules, run.state, 60) == pytest.approx(60)
    abort, discard, opened = run(events.Ticked(), 120)
    assert abort == SignAbort(1, "1 site joined, the minimum cohort is 2")
    assert (discard, opened) == (Discard(1), SignRound(2, b"m0"))


def test_a_join_in_the_second_window_makes_the_plan_at_once() -> None:
    run = Run(make()).keys()
    run.join("a")
    run(events.Ticked(), 70)
    assert run.join("d") == (SignPlan(1, ("a", "d")),)


def test_sites_with_another_shared_key_are_left_out() -> None:
    run = Run(make()).keys()
    run.join("a", key=b"other")
    assert run.join("b", "c", "d") == (SignPlan(1, ("b", "c", "d")),)


def test_a_second_join_is_a_conflict_but_for_a_restarted_quorum_site() -> None:
    shared, quorum = Run(make()).keys(), Run(make(quorum=True))
    for run in (shared, quorum):
        run.join("a")
        assert run.join("a") == ()
    with pytest.raises(ConflictError):
        shared(events.JoinPosted("a", 1, b"different", b"K"))
    quorum(events.JoinPosted("a", 1, b"different"))
    assert quorum.state.joins["a"].record == b"different"
    quorum.join("b", "c", "d")
    with pytest.raises(LateError):
        quorum(events.JoinPosted("a", 1, b"third"))


def test_revoked_sites_are_not_waited_for_nor_planned() -> None:
    run = Run(make()).keys()
    run.join("a", "b", "c")
    assert run(events.SitesRevoked(frozenset("bd"))) == (SignPlan(1, ("a", "c")),)
    run = Run(make()).keys()
    run(events.SitesRevoked(frozenset("a")))
    with pytest.raises(ProtocolError):
        run.join("a")


def test_a_revoked_site_needs_no_key() -> None:
    run = Run(make())
    for site in "abc":
        run(events.KeyStored(site, 1))
    assert run(events.SitesRevoked(frozenset("d"))) == (SignRound(1, b"m0"),)


def test_commits_by_the_deadline_make_u_and_later_ones_are_refused() -> None:
    run = Run(make()).keys()
    run.join(*SITES)
    run.commit("c", "a")
    assert run(events.Ticked(), 29) == ()
    assert run(events.Ticked(), 30) == (StartSum(1, ("a", "c")),)
    with pytest.raises(LateError, match="came late"):
        run.commit("b")
    assert run.commit("a") == (), "the same commit again is fine at any time"
    with pytest.raises(ConflictError):
        run(events.CommitPosted("a", 1, 2, b"another"))


def test_too_few_commits_abort_the_round() -> None:
    run = Run(make()).keys()
    run.join(*SITES)
    run.commit("a")
    abort, _, opened = run(events.Ticked(), 30)
    assert isinstance(abort, SignAbort) and opened == SignRound(2, b"m0")
    with pytest.raises(LateError):
        run(events.CommitPosted("b", 1, 1, b"cb"))


def test_commit_outside_the_plan_and_too_early() -> None:
    run = Run(make()).keys()
    with pytest.raises(ProtocolError, match="too early"):
        run.commit("a")
    run.join("a", "b", "c")
    run(events.Ticked(), 60)
    with pytest.raises(ProtocolError, match="not in the plan"):
        run.commit("d")
    with pytest.raises(ProtocolError, match="not open"):
        run(events.CommitPosted("a", 2, 1, b"ca"))


def close(run: Run, *sites: str) -> Run:
    run.keys()
    run.join(*sites)
    if len(sites) < len(SITES):
        run(events.Ticked(), run.now + 60)
    run.commit(*sites)
    run(events.Summed(1, b"root", 1))
    return run


def test_a_missing_report_costs_the_verify_deadline_only() -> None:
    run = close(Run(make()), *SITES)
    for site in "abc":
        run(events.ReportPosted(site, 1, b"m1"))
    assert run(events.Ticked(), run.now + 19) == ()
    assert run(events.Ticked(), run.now + 1)[-1] == SignRound(2, b"m1")
    assert run(events.ReportPosted("d", 1, b"m1")) == (), "late, and harmless"


def test_one_dissenter_stops_nothing_and_may_report_again() -> None:
    run = close(Run(make()), *SITES)
    run(events.ReportPosted("d", 1, b"bad"))
    run(events.ReportPosted("d", 1, b"worse"))
    for site in "abc":
        effects = run(events.ReportPosted(site, 1, b"m1"))
    assert effects[-1] == SignRound(2, b"m1")


def test_a_site_outside_u_does_not_vote() -> None:
    run = close(Run(make(colluders=0)), "a", "b", "c")
    run(events.ReportPosted("a", 1, b"x"))
    run(events.ReportPosted("d", 1, b"m1"))
    run(events.ReportPosted("b", 1, b"m1"))
    assert run.state.phase is Phase.RELEASE
    assert run(events.Ticked(), run.now + 39) == ()
    assert run(events.ReportPosted("c", 1, b"m1"))[-1] == SignRound(2, b"m1")


def test_no_agreement_aborts_the_study_and_keeps_the_close_record() -> None:
    run = close(Run(make()), *SITES)
    for site, model in zip(SITES, (b"x", b"x", b"y", b"y"), strict=True):
        run(events.ReportPosted(site, 1, model))
    assert run(events.Ticked(), run.now + 39) == ()
    assert run(events.Ticked(), run.now + 1) == (Discard(1),)
    assert run.state.life is Life.ABORTED and "round 1" in run.state.reason
    with pytest.raises(LateError, match="aborted"):
        run(events.ReportPosted("a", 1, b"z"))


def test_the_study_ends_behind_its_last_round() -> None:
    run = close(Run(make(rounds=1)), *SITES)
    for site in SITES:
        effects = run(events.ReportPosted(site, 1, b"m1"))
    assert effects == (Discard(1),) and run.state.life is Life.FINISHED and run.state.model == b"m1"
    with pytest.raises(
        LateError, match="finished"
    ):  # sites read the reports to know whether the last model stands
        run(events.ReportPosted("a", 1, b"m2"))


def test_a_study_without_any_finished_round_is_aborted() -> None:
    run = Run(make(rounds=1)).keys()
    run(events.Ticked(), 120)
    assert run.state.life is Life.ABORTED and "no round" in run.state.reason


def test_an_operators_abort_ends_round_and_study_once() -> None:
    run = Run(make()).keys()
    run.join(*SITES)
    assert run(events.StudyAborted("enough")) == (SignAbort(1, "enough"), Discard(1))
    assert run(events.StudyAborted("enough")) == ()
    for event in (events.Restarted(), events.Ticked(), events.Summed(1, b"", 1)):
        assert run(event) == ()


def test_a_failed_sum_aborts_the_round_and_a_sum_made_twice_counts_once() -> None:
    run = Run(make()).keys()
    run.join(*SITES)
    run.commit(*SITES)
    failed = Run(make())
    failed.state = run.state
    assert failed(events.SumFailed(1, "no"))[0] == SignAbort(1, "no")
    assert failed(events.Summed(1, b"root", 1)) == ()
    run(events.Summed(1, b"root", 1))
    assert run(events.Summed(1, b"root", 1)) == ()
    assert run(events.SumFailed(1, "no")) == ()


def test_deadlines_start_anew_after_a_restart() -> None:
    run = Run(make()).keys()
    run.join("a", "b")
    run(events.Ticked(), 50)
    run(events.Restarted(), 3.0)
    assert run(events.Ticked(), 62.9) == ()
    assert run(events.Ticked(), 63.0) == (SignPlan(1, ("a", "b")),)


def test_a_new_version_comes_into_force_at_its_first_round_with_a_new_key() -> None:
    old = make().versions[0]
    rules = StudyRules((old, replace(old, version=2, first_round=2, roster=("a", "b", "e"))))
    run = close(Run(rules), *SITES)
    for site in SITES:
        run(events.ReportPosted(site, 1, b"m1"))
    assert (run.state.phase, run.state.round) == (Phase.KEYS, 2)
    assert keys_missing(rules, run.state, 2) == ("a", "b", "e"), "the leaver's key is not used again"
    with pytest.raises(ProtocolError, match="not open"):
        run(events.JoinPosted("a", 2, b"j", b"K"))
    for site in "abe":
        effects = run(events.KeyStored(site, 2))
    assert effects == (SignRound(2, b"m1"),)


def test_nothing_changes_for_a_tick_in_time() -> None:
    run = Run(make()).keys()
    before: State = run.state
    run(events.Ticked(), 1.0)
    assert run.state is before
