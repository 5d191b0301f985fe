"""The transitions of the quorum suite one by one: shares that do not open, answers that do not come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit_round_machine import SITES, Run, make

from cipherward.coordinator.rounds import events
from cipherward.coordinator.rounds.effects import (
    Discard,
    NoteUnopened,
    SignAbort,
    SignRound,
    StartSum,
)
from cipherward.coordinator.rounds.machine import seconds_left
from cipherward.coordinator.rounds.quorum import GRACE_SECONDS, contributors_after_acknowledgements
from cipherward.coordinator.rounds.state import Committed, Life, Phase, Rules, State
from cipherward.crypto.manifest_rules import effective_threshold
from cipherward.errors import ConflictError, LateError, ProtocolError


def quorum_to(phase: Phase) -> Run:
    run = Run(make(quorum=True, k=3))
    run.join(*SITES)
    run.commit(*SITES)
    assert run.state.phase is Phase.ACKNOWLEDGE
    if phase is Phase.UNSEAL:
        for site in SITES:
            run(events.AcknowledgementPosted(site, 1))
        run(events.Summed(1, b"root", 1))
    assert run.state.phase is phase
    return run


def test_quorum_a_dealer_nobody_can_open_is_left_out() -> None:
    run = quorum_to(Phase.ACKNOWLEDGE)
    for site in SITES:
        effects = run(events.AcknowledgementPosted(site, 1, frozenset("d")))
    assert effects == (StartSum(1, ("a", "b", "c")),)
    assert run.state.phase is Phase.SUM


def test_quorum_one_accuser_excludes_nobody() -> None:
    run = quorum_to(Phase.ACKNOWLEDGE)
    run(events.AcknowledgementPosted("a", 1, frozenset("d")))
    for site in "bcd":
        effects = run(events.AcknowledgementPosted(site, 1))
    assert effects == (StartSum(1, SITES),), "three of four can still open it: t = 3"


def acknowledge(run: Run, *sites: str, bad: str = "") -> tuple[object, ...]:
    effects: tuple[object, ...] = ()
    for site in sites:
        effects += run(events.AcknowledgementPosted(site, 1, frozenset(bad)))
    return effects


def answer(run: Run, *sites: str) -> None:
    for site in sites:
        run(events.AnswerPosted(site, 1, b"s" + site.encode()))


def test_quorum_too_few_acknowledgements_abort() -> None:
    run = quorum_to(Phase.ACKNOWLEDGE)
    assert acknowledge(run, "a", "b") == ()
    assert run(events.Ticked(), 9.9) == (), "two are not enough for the grace to begin"
    abort = run(events.Ticked(), 10)[0]
    assert abort == SignAbort(
        1, "2 sites acknowledged their shares, and 0 updates can be opened: the minimum cohort is 3"
    )


def test_quorum_a_member_that_died_costs_the_grace_and_not_the_deadline() -> None:
    run = quorum_to(Phase.ACKNOWLEDGE)
    run(events.Ticked(), 5.0)
    acknowledge(run, "d", "a", "b")
    assert seconds_left(run.rules, run.state, 5.0) == pytest.approx(GRACE_SECONDS)
    assert run(events.Ticked(), 5.0 + GRACE_SECONDS - 0.1) == ()
    assert run(events.Ticked(), 5.0 + GRACE_SECONDS) == (StartSum(1, SITES),), "its update counts"
    run(events.Summed(1, b"root", 1), 9.0)
    answer(run, "d", "a", "b")
    assert run.state.phase is Phase.UNSEAL
    run(events.Ticked(), 9.0 + GRACE_SECONDS)
    assert run.state.phase is Phase.RELEASE and run.state.enough_since is None


def test_quorum_the_grace_never_outlasts_the_deadline_and_starts_anew_after_a_restart() -> None:
    run = quorum_to(Phase.ACKNOWLEDGE)
    run(events.Ticked(), 8.0)
    acknowledge(run, "a", "b", "c")
    assert seconds_left(run.rules, run.state, 8.0) == pytest.approx(2.0)
    run(events.Restarted(), 100.0)
    assert run.state.enough_since == 100.0
    assert run(events.Ticked(), 102.9) == ()
    assert run(events.Ticked(), 103.0) == (StartSum(1, SITES),)


def test_quorum_a_grace_waits_on_if_complaints_leave_too_few_updates() -> None:
    run = quorum_to(Phase.ACKNOWLEDGE)
    acknowledge(run, "a", "b", bad="cd")
    acknowledge(run, "c")
    assert run.state.enough_since is None, "two updates that can be opened are no cohort"
    assert run(events.Ticked(), GRACE_SECONDS) == ()
    assert isinstance(acknowledge(run, "d")[0], SignAbort), "nobody is left to wait for"


def test_quorum_who_complained_of_u_neither_answers_nor_is_waited_for() -> None:
    run = quorum_to(Phase.ACKNOWLEDGE)
    acknowledge(run, "a", bad="d")
    assert acknowledge(run, "b", "c", "d") == (StartSum(1, SITES),)
    run(events.Summed(1, b"root", 1))
    with pytest.raises(ProtocolError, match="could not open"):
        answer(run, "a")
    answer(run, "b", "c", "d")
    assert run.state.phase is Phase.RELEASE


def test_quorum_revoked_members_count_for_nothing() -> None:
    run = quorum_to(Phase.ACKNOWLEDGE)
    acknowledge(run, "a", "b", "d")
    assert run(events.SitesRevoked(frozenset("d"))) == () and run.state.enough_since is None
    assert acknowledge(run, "c") == (StartSum(1, SITES),)
    run(events.Summed(1, b"root", 1))
    answer(run, "a", "b", "c")
    assert run.state.phase is Phase.RELEASE
    run = quorum_to(Phase.UNSEAL)
    assert run(events.SitesRevoked(frozenset("cd"))) == ()
    answer(run, "a")
    assert run.state.phase is Phase.UNSEAL
    answer(run, "b")
    assert run.state.round == 2, "no third can come: the round ends at once"


def test_quorum_answers_release_or_abort_keeping_the_close_record() -> None:
    run = quorum_to(Phase.UNSEAL)
    answer(run, "a", "b", "c")
    assert run.state.phase is Phase.UNSEAL
    answer(run, "d")
    assert run.state.phase is Phase.RELEASE
    with pytest.raises(ConflictError):
        run(events.AnswerPosted("a", 1, b"other"))
    run = quorum_to(Phase.UNSEAL)
    answer(run, "a")
    with pytest.raises(ConflictError):
        run(events.AnswerPosted("a", 1, b"other"))
    note, *rest = run(events.Ticked(), 10)
    assert note == NoteUnopened(1, "1 site answered, the threshold is 3: the sum stays closed")
    assert rest == [Discard(1), SignRound(2, b"m0")], "the close record stands in the chain"
    with pytest.raises(LateError):
        answer(run, "b")


def test_quorum_a_sum_that_nobody_could_open_ends_the_round_and_not_the_study() -> None:
    run = quorum_to(Phase.UNSEAL)
    answer(run, *SITES)
    assert run(events.Ticked(), run.now + 39) == ()
    note, discard, opened = run(events.Ticked(), run.now + 1)
    assert isinstance(note, NoteUnopened) and (discard, opened) == (Discard(1), SignRound(2, b"m0"))
    run = quorum_to(Phase.UNSEAL)
    answer(run, *SITES)
    run(events.ReportPosted("a", 1, b"m1"))
    assert run(events.Ticked(), run.now + 40) == (Discard(1),)
    assert run.state.life is Life.ABORTED, "one site has moved on: the models differ"


def test_quorum_as_many_reports_as_colluders_do_not_end_the_study() -> None:
    """A site that keeps all others from opening the sum cannot, with a report of its own, end the study as well."""
    run = Run(make(quorum=True, k=3, colluders=1))
    run.join(*SITES)
    run.commit(*SITES)
    for site in SITES:
        run(events.AcknowledgementPosted(site, 1))
    run(events.Summed(1, b"root", 1))
    answer(run, *SITES)
    run(events.ReportPosted("a", 1, b"made up"))
    note, discard, opened = run(events.Ticked(), run.now + 40)
    assert isinstance(note, NoteUnopened) and (discard, opened) == (Discard(1), SignRound(2, b"m0"))
    assert run.state.life is Life.RUNNING


@given(st.data())
def test_quorum_whatever_members_complain_of_t_of_them_can_open_u(data: st.DataObject) -> None:
    n = data.draw(st.integers(3, 9))
    names = tuple("abcdefghi"[:n])
    subsets = st.frozensets(st.sampled_from(names), max_size=n)
    few = st.frozensets(st.sampled_from(names), max_size=2)
    said = data.draw(st.tuples(*[st.none() | few | subsets] * n))
    acknowledged = {name: bad for name, bad in zip(names, said, strict=True) if bad is not None}
    revoked, committed = data.draw(few), frozenset(names) - data.draw(few)
    needed = effective_threshold(0, n)
    rule = Rules(1, 1, 3, names, True, needed, 0, 0, 60, 30, 10, 10, 20)
    state = State(
        1, Phase.ACKNOWLEDGE, 0.0, b"m", plan=names, revoked=revoked, acknowledgements=acknowledged,
        commits={name: Committed(1, b"c") for name in committed},
    )  # fmt: skip
    u = contributors_after_acknowledgements(rule, state)
    live = [site for site in acknowledged if site not in revoked]
    unhappy = [site for site in live if acknowledged[site] & committed]
    if u:
        assert set(u) <= committed and list(u) == sorted(u)
        assert sum(not acknowledged[site] & set(u) for site in live) >= needed
    if len(live) - len(unhappy) >= needed:
        assert set(u) == committed, "nobody goes without need"
    if len(live) < needed:
        assert u == ()
