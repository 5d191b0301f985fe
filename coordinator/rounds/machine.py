"""The transitions. A handler records what an event says; ``_advance`` then moves the study as far as the
recorded facts and the time allow. Every event may come twice: the second changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cipherward.coordinator.rounds import quorum
from cipherward.coordinator.rounds.effects import (
    Discard,
    Effect,
    NoteUnopened,
    SignAbort,
    SignClose,
    SignPlan,
    SignRound,
    StartSum,
)
from cipherward.coordinator.rounds.events import (
    AcknowledgementPosted,
    AnswerPosted,
    CommitPosted,
    Event,
    JoinPosted,
    KeyStored,
    ReportPosted,
    Restarted,
    SitesRevoked,
    StudyAborted,
    SumFailed,
    Summed,
    Ticked,
    VersionAdded,
)
from cipherward.coordinator.rounds.state import Committed, Joining, Life, Phase, Rules, State, StudyRules
from cipherward.crypto.manifest_rules import effective_threshold
from cipherward.crypto.records import agreement_needed
from cipherward.errors import ConflictError, LateError, ProtocolError

Step = tuple[State, tuple[Effect, ...]]


def start(rules: StudyRules, model: bytes, now: float) -> Step:
    """A new study, about to open its first round from the initial model."""
    first = rules.versions[0].first_round
    return _settle(rules, State(round=first - 1, phase=Phase.RELEASE, since=now, model=model), now, first)


def step(rules: StudyRules, state: State, event: Event, now: float) -> Step:
    """What the event makes of the study.

    ``now`` is monotonic seconds. Raises ProtocolError (LateError, ConflictError) for what the state does not
    allow; the state is then as before. Returns ``state`` itself if nothing changed.
    """
    if not state.running:
        if isinstance(event, Restarted | Ticked | VersionAdded | SitesRevoked | Summed | SumFailed):
            return state, ()
        if isinstance(event, StudyAborted) and state.life is Life.ABORTED:
            return state, ()
        # A report too: behind a last round that was given up it would change what the sites make of the reports.
        raise LateError(f"the study is {state.life.value}", why=state.reason)
    changed, effects = _HANDLERS[type(event)](rules, state, event, now)
    advanced, more = _advance(rules, changed, now) if changed.running else (changed, ())
    return advanced, effects + more


def owed(state: State) -> StartSum | None:
    """The sum that a coordinator which starts on this state must start again."""
    if state.running and state.phase is Phase.SUM:
        return StartSum(state.round, state.contributors)
    return None


def seconds_left(rules: StudyRules, state: State, now: float) -> float | None:
    """Until the phase's next deadline; None for phases without one."""
    rule, spent = rules.at(state.round), now - state.since
    limit: float | None = {
        Phase.OPEN: rule.join_window,
        Phase.UPLOAD: rule.upload,
        Phase.ACKNOWLEDGE: rule.acknowledge,
        Phase.UNSEAL: rule.unseal,
        Phase.RELEASE: rule.verify,
    }.get(state.phase)
    if limit is None or not state.running:
        return None
    if spent >= limit and state.phase in (Phase.OPEN, Phase.RELEASE):
        limit *= 2  # these two wait once more before they give up
    if state.enough_since is not None:
        limit = min(limit, state.enough_since - state.since + quorum.GRACE_SECONDS)
    return max(0.0, limit - spent)


def expected_sites(rules: StudyRules, state: State) -> tuple[str, ...]:
    """The roster of the round without revoked sites."""
    return tuple(name for name in rules.at(state.round).roster if name not in state.revoked)


def keys_missing(rules: StudyRules, state: State, round_number: int) -> tuple[str, ...]:
    """Shared-key suite: sites of that round whose sealed key is not stored yet."""
    rule = rules.at(round_number)
    if rule.quorum:
        return ()
    return tuple(
        name for name in rule.roster if name not in state.revoked and (rule.version, name) not in state.keys
    )


# --- handlers: record what happened ---


def _restarted(_rules: StudyRules, state: State, _event: Restarted, now: float) -> Step:
    return replace(state, since=now, enough_since=None), ()


def _unchanged(_rules: StudyRules, state: State, _event: Event, _now: float) -> Step:
    return state, ()


def _sites_revoked(_rules: StudyRules, state: State, event: SitesRevoked, _now: float) -> Step:
    if event.sites <= state.revoked:
        return state, ()
    return replace(state, revoked=state.revoked | event.sites), ()


def _key_stored(_rules: StudyRules, state: State, event: KeyStored, _now: float) -> Step:
    key = (event.version, event.site)
    return (state, ()) if key in state.keys else (replace(state, keys=state.keys | {key}), ())


def _same_round(state: State, round_number: int, what: str) -> None:
    if round_number < state.round:
        raise LateError(
            f"the {what} for round {round_number} came late", why=f"round {state.round} has begun"
        )
    if round_number > state.round or state.phase is Phase.KEYS:
        raise ProtocolError(f"round {round_number} is not open", why=f"the study is at round {state.round}")


def _in_phase(state: State, phase: Phase, what: str, site: str) -> None:
    if state.phase is phase:
        return
    order = list(Phase)
    if order.index(state.phase) > order.index(phase):
        raise LateError(
            f"{site}'s {what} for round {state.round} came late", why=f"the round is at {state.phase.value}"
        )
    raise ProtocolError(f"{site}'s {what} is too early", why=f"the round is at {state.phase.value}")


def _join(rules: StudyRules, state: State, event: JoinPosted, _now: float) -> Step:
    _same_round(state, event.round, "join")
    known = state.joins.get(event.site)
    if known is not None and known.record == event.record:
        return state, ()
    _in_phase(state, Phase.OPEN, "join", event.site)
    if event.site not in expected_sites(rules, state):
        raise ProtocolError(f"{event.site} is not expected in round {event.round}")
    if known is not None and not rules.at(state.round).quorum:
        # A quorum site that restarted has lost its round key and needs a new one; here nothing can be lost.
        raise ConflictError(f"{event.site} joined round {event.round} twice, with different records")
    joining = Joining(event.record, event.shared_key)
    return replace(state, joins={**state.joins, event.site: joining}), ()


def _commit(_rules: StudyRules, state: State, event: CommitPosted, _now: float) -> Step:
    _same_round(state, event.round, "commit")
    known = state.commits.get(event.site)
    if known is not None:
        if known.record == event.record:
            return state, ()
        raise ConflictError(f"{event.site} already committed another update in round {event.round}")
    _in_phase(state, Phase.UPLOAD, "commit", event.site)
    if event.site not in state.plan:
        raise ProtocolError(f"{event.site} is not in the plan of round {event.round}")
    commits = {**state.commits, event.site: Committed(event.attempt, event.record)}
    return replace(state, commits=commits), ()


def _acknowledgement(_rules: StudyRules, state: State, event: AcknowledgementPosted, _now: float) -> Step:
    _same_round(state, event.round, "acknowledgement")
    known = state.acknowledgements.get(event.site)
    if known is not None:
        if known == event.unopenable:
            return state, ()
        raise ConflictError(f"{event.site} already acknowledged something else in round {event.round}")
    _in_phase(state, Phase.ACKNOWLEDGE, "acknowledgement", event.site)
    if event.site not in state.plan:
        raise ProtocolError(f"{event.site} is not in the plan of round {event.round}")
    return replace(state, acknowledgements={**state.acknowledgements, event.site: event.unopenable}), ()


def _summed(rules: StudyRules, state: State, event: Summed, now: float) -> Step:
    if event.round != state.round or state.phase is not Phase.SUM:
        return state, ()  # a sum that was run twice
    phase = Phase.UNSEAL if rules.at(state.round).quorum else Phase.RELEASE
    close = SignClose(state.round, state.contributors, event.root, event.chunk_count)
    return replace(state, phase=phase, since=now), (close,)


def _sum_failed(rules: StudyRules, state: State, event: SumFailed, now: float) -> Step:
    if event.round != state.round or state.phase is not Phase.SUM:
        return state, ()
    return _abort_round(rules, state, now, event.reason)


def _answer(_rules: StudyRules, state: State, event: AnswerPosted, _now: float) -> Step:
    _same_round(state, event.round, "answer")
    known = state.answers.get(event.site)
    if known is not None:
        if known == event.record:
            return state, ()
        raise ConflictError(f"{event.site} already answered round {event.round} differently")
    _in_phase(state, Phase.UNSEAL, "answer", event.site)
    if event.site not in state.plan:
        raise ProtocolError(f"{event.site} is not in the plan of round {event.round}")
    if not quorum.able(state, event.site):
        raise ProtocolError(
            f"{event.site} answered round {event.round}", why="it said that it could not open its shares"
        )
    return replace(state, answers={**state.answers, event.site: event.record}), ()


def _report(_rules: StudyRules, state: State, event: ReportPosted, _now: float) -> Step:
    if event.round < state.round:
        return state, ()  # the round was decided without it
    _same_round(state, event.round, "model report")
    _in_phase(state, Phase.RELEASE, "model report", event.site)
    if state.reports.get(event.site) == event.model:
        return state, ()
    # A site that differed from the others reports again once it has fetched their model.
    return replace(state, reports={**state.reports, event.site: event.model}), ()


def _study_aborted(_rules: StudyRules, state: State, event: StudyAborted, _now: float) -> Step:
    return _abort_study(state, event.reason)


_HANDLERS: dict[type[Any], Callable[[StudyRules, State, Any, float], Step]] = {
    Restarted: _restarted,
    Ticked: _unchanged,
    VersionAdded: _unchanged,
    SitesRevoked: _sites_revoked,
    KeyStored: _key_stored,
    JoinPosted: _join,
    CommitPosted: _commit,
    AcknowledgementPosted: _acknowledgement,
    Summed: _summed,
    SumFailed: _sum_failed,
    AnswerPosted: _answer,
    ReportPosted: _report,
    StudyAborted: _study_aborted,
}


# --- transitions: go as far as facts and time allow ---


def _advance(rules: StudyRules, state: State, now: float) -> Step:
    rule, spent = rules.at(state.round), now - state.since
    match state.phase:
        case Phase.KEYS:
            if keys_missing(rules, state, state.round):
                return state, ()
            return _settle(rules, state, now, state.round)
        case Phase.OPEN:
            return _advance_open(rules, rule, state, spent, now)
        case Phase.UPLOAD:
            return _advance_upload(rules, rule, state, spent, now)
        case Phase.ACKNOWLEDGE:
            return _advance_acknowledge(rules, rule, state, now)
        case Phase.UNSEAL:
            return _advance_unseal(rules, rule, state, now)
        case Phase.RELEASE:
            return _advance_release(rules, rule, state, spent, now)
        case _:
            return state, ()  # SUM ends by Summed or SumFailed


def _advance_open(rules: StudyRules, rule: Rules, state: State, spent: float, now: float) -> Step:
    expected = expected_sites(rules, state)
    joined = [site for site in expected if site in state.joins]
    # Sites that hold different shared keys cannot be in one plan: the largest group that agrees is taken.
    groups = Counter(state.joins[site].shared_key for site in joined)
    key = groups.most_common(1)[0][0] if groups else b""
    agreeing = tuple(site for site in joined if state.joins[site].shared_key == key)
    complete = len(joined) == len(expected) or spent >= rule.join_window
    if complete and len(agreeing) >= rule.minimum_cohort:
        planned = replace(state, phase=Phase.UPLOAD, since=now, plan=agreeing)
        return planned, (SignPlan(state.round, agreeing),)
    if spent >= 2 * rule.join_window:
        have = f"{len(agreeing)} site{'s' * (len(agreeing) != 1)} joined"
        return _abort_round(rules, state, now, f"{have}, the minimum cohort is {rule.minimum_cohort}")
    return state, ()


def _advance_upload(rules: StudyRules, rule: Rules, state: State, spent: float, now: float) -> Step:
    committed = tuple(site for site in state.plan if site in state.commits)
    if len(committed) < len(state.plan) and spent < rule.upload:
        return state, ()
    if len(committed) < rule.minimum_cohort:
        have = f"{len(committed)} site{'s' * (len(committed) != 1)} committed an update"
        return _abort_round(rules, state, now, f"{have}, the minimum cohort is {rule.minimum_cohort}")
    if rule.quorum:
        return replace(state, phase=Phase.ACKNOWLEDGE, since=now), ()
    return _fix_contributors(state, committed, now)


def _advance_acknowledge(rules: StudyRules, rule: Rules, state: State, now: float) -> Step:
    state, over = quorum.members_over(rule, state, rule.acknowledge, now)
    if not over:
        return state, ()
    chosen = quorum.contributors_after_acknowledgements(rule, state)
    if len(chosen) < rule.minimum_cohort:
        have = f"{len(state.acknowledgements)} sites acknowledged their shares"
        reason = (
            f"{have}, and {len(chosen)} updates can be opened: the minimum cohort is {rule.minimum_cohort}"
        )
        return _abort_round(rules, state, now, reason)
    return _fix_contributors(state, chosen, now)


def _advance_unseal(rules: StudyRules, rule: Rules, state: State, now: float) -> Step:
    state, over = quorum.members_over(rule, state, rule.unseal, now)
    if not over:
        return state, ()
    if not quorum.enough(rule, state):
        needed = effective_threshold(rule.threshold, len(state.plan))
        have = f"{len(state.answers)} site{'s' * (len(state.answers) != 1)} answered"
        return _abort_round(rules, state, now, f"{have}, the threshold is {needed}: the sum stays closed")
    return replace(state, phase=Phase.RELEASE, since=now, enough_since=None), ()


def _fix_contributors(state: State, chosen: tuple[str, ...], now: float) -> Step:
    fixed = replace(state, phase=Phase.SUM, since=now, enough_since=None, contributors=chosen)
    return fixed, (StartSum(state.round, chosen),)


def _advance_release(rules: StudyRules, rule: Rules, state: State, spent: float, now: float) -> Step:
    votes = Counter(state.reports[site] for site in state.contributors if site in state.reports)
    needed = agreement_needed(rule.colluders, len(state.contributors))
    model, count = votes.most_common(1)[0] if votes else (b"", 0)
    agreed = count >= min(needed, len(state.contributors))
    complete = votes.total() == len(state.contributors)
    if agreed and (complete or spent >= rule.verify):
        done = replace(state, model=model, model_round=state.round)
        settled, effects = _settle(rules, done, now, state.round + 1)
        return settled, (Discard(state.round), *effects)
    if spent >= 2 * rule.verify:
        if rule.quorum and votes.total() <= rule.colluders:
            # A wrong answer or update can keep everyone from opening it, and whoever made it can report a model
            # nevertheless: c reports do not show that an honest site moved on. One that did fetches the model
            # that the others agree on after the next round.
            return _abort_round(rules, state, now, "no site could verify and open the sum")
        return _abort_study(
            state,
            f"after round {state.round} no model was reported by {needed} of {len(state.contributors)} sites",
        )
    return state, ()


def _settle(rules: StudyRules, state: State, now: float, round_number: int) -> Step:
    """Open that round, or wait for its keys first, or end the study behind the last round."""
    rounds = rules.at(round_number).rounds
    fresh = State(
        round=round_number,
        phase=Phase.OPEN,
        since=now,
        model=state.model,
        model_round=state.model_round,
        keys=state.keys,
        revoked=state.revoked,
    )
    if round_number > rounds:
        ended = replace(state, since=now)
        if state.model_round == 0:
            return replace(ended, life=Life.ABORTED, reason="no round of the study gave a model"), ()
        return replace(ended, life=Life.FINISHED), ()
    if keys_missing(rules, state, round_number):
        return replace(fresh, phase=Phase.KEYS), ()
    return fresh, (SignRound(round_number, state.model),)


def _abort_round(rules: StudyRules, state: State, now: float, reason: str) -> Step:
    """The round's number is used up; the next begins from the same model."""
    settled, effects = _settle(rules, state, now, state.round + 1)
    closed = state.phase in (Phase.UNSEAL, Phase.RELEASE)
    noted = (NoteUnopened(state.round, reason),) if closed else _abort_record(state, reason)
    return settled, (*noted, Discard(state.round), *effects)


def _abort_study(state: State, reason: str) -> Step:
    ended = replace(state, life=Life.ABORTED, reason=reason)
    return ended, (*_abort_record(state, reason), Discard(state.round))


def _abort_record(state: State, reason: str) -> tuple[Effect, ...]:
    if state.phase in (Phase.KEYS, Phase.UNSEAL, Phase.RELEASE):
        return ()  # the round has no record yet, or its close record stands in the chain
    return (SignAbort(state.round, reason),)
