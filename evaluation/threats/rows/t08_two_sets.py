"""T08: two contributor sets for one round. Half of the honest members see one, half see one without a site, and the
colluders answer both: where both open, the difference is that site's update."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cipherward.crypto import manifest_rules
from cipherward.crypto.manifest_rules import colluders_withstood, least_threshold
from cipherward.crypto.records import Plan
from cipherward.errors import CipherwardError
from cipherward.evaluation.threats.bypass import replaced
from cipherward.evaluation.threats.kit.parties import Parties, Round, Who, vectors
from cipherward.evaluation.threats.kit.played_round import ROUND, PlayedRound
from cipherward.evaluation.threats.plots import OFF, ON, plot
from cipherward.evaluation.threats.row import Case, Context, Result, Row
from cipherward.proto.v1.common_pb2 import Signed

LENGTH = 6


def _bare_majority(sites: int) -> int:
    """Rule 4 taken out: any threshold above n/2."""
    return sites // 2 + 1


def _splits(played: Round, colluders: int) -> Iterator[tuple[Who, Who]]:
    """Every way to divide the honest members, by number: who answers the first set, and who the second."""
    honest = played.members[: len(played.members) - colluders]
    both = played.members[len(honest) :]
    for count in range(len(honest) + 1):
        yield honest[:count] + both, honest[count:] + both


def _stolen(played: Round, colluders: int) -> float | None:
    """How far the difference of the two opened sums is from the first site's update; None if they never both open."""
    first, second = played.members, played.members[1:]
    for one, two in _splits(played, colluders):
        try:
            opened = [
                played.open_sum(first, one, played.members[-1]),
                played.open_sum(second, two, played.members[-1]),
            ]
        except CipherwardError:
            continue
        return float(np.abs(opened[0] - opened[1] - played.trained[first[0]]).max())
    return None


def _pair(n: int, t: int, seed: int) -> Case:
    with replaced(manifest_rules, "least_threshold", _bare_majority):
        parties = Parties(n, length=LENGTH, threshold=t)
        played = Round(parties, parties.names)
        played.trained = vectors(parties.names, LENGTH, seed=seed + n * 10 + t, bound=64.0)
        for name in parties.names:
            played.upload(name, played.trained[name])
        enough, below = _stolen(played, 2 * t - n), _stolen(played, 2 * t - n - 1)
    bound = 2 * parties.params.error_bound(n)
    return Case(
        f"n = {n}, t = {t}",
        control=f"{2 * t - n} colluders: "
        + ("both sets open" if enough is None else f"one site's update, to {enough:.1e}"),
        control_worked=enough is not None and enough <= bound,
        defended=f"{2 * t - n - 1} colluders: the two sets never both open"
        if below is None
        else f"{2 * t - n - 1} colluders: one site's update, to {below:.1e}",
        held=below is None,
    )


def _said(action: Callable[[], object]) -> str:
    try:
        action()
    except CipherwardError as error:
        return str(error)
    return ""


def _off(played: PlayedRound, difference: Any, victim: str) -> float:
    """How far the difference of two opened sums is from what the victim sent."""
    return float(np.abs(difference - played.sent(victim)).max())


@dataclass(frozen=True)
class _Closed:
    """The two close records of the round: over everybody, and without the first site."""

    plan: Plan
    everybody: Signed
    without: Signed


def _begin(played: PlayedRound) -> _Closed:
    """The round up to the shares, as an honest coordinator leads it, and two close records about it."""
    signed, plan = played.plan_of(played.names)
    played.show_plan(signed, plan, played.names)
    for agent in played.agents.values():
        agent.upload.upload_and_commit(ROUND, plan.digest)
    for agent in played.agents.values():
        agent.protection.acknowledge(ROUND)
    return _Closed(plan, played.close_of(plan, played.names), played.close_of(plan, played.names[1:]))


def _two_closes(played: PlayedRound, closed: _Closed) -> list[Case]:
    """n = 4, t = 3: the victim sees one record, the next two the other; colluders are agents whose journal's check is
    taken out, and answer both through the same code."""
    victim, second, third, colluder = played.names
    bound = 2 * played.params.error_bound(len(played.names))

    def difference() -> Any:
        return played.open(closed.plan, closed.everybody, played.names, colluder) - played.open(
            closed.plan, closed.without, played.names[1:], colluder
        )

    def answers_both(name: str, close: Signed) -> None:
        played.forget(name, "answered_close")
        played.answer(name, close)

    played.answer(victim, closed.everybody)
    for name in (second, third, colluder):
        played.answer(name, closed.without)
    said = {name: _said(lambda name=name: played.answer(name, closed.everybody)) for name in (second, third)}  # type: ignore[misc]
    answers_both(colluder, closed.everybody)
    below = _said(difference)
    answers_both(third, closed.everybody)
    off = _off(played, difference(), victim)
    worked = off <= bound
    return [
        Case(
            "real agents, n = 4, t = 3: two close records",
            control=f"two agents whose journal's check is taken out answer both: both sets open, and their difference "
            f"is {victim}'s update, to {off:.1e}",
            control_worked=worked,
            defended=f"one such agent: {below}" if below else "one such agent is enough",
            held="too few" in below,
        ),
        Case(
            "real agents: the other close record, in the same process",
            control="without the journal's check the same code answers it",
            control_worked=worked,
            defended=" / ".join(sorted(set(said.values())))[:200] or "answered",
            held=all(said.values()),
        ),
    ]


def _answers_once(played: PlayedRound, closed: _Closed, before: Path) -> list[Case]:
    """A second answer after a restart or from a snapshot; ``before``: the agent's folder before it answered."""
    name = played.names[1]
    key, given = played.secret(name), len(played.links[name].answers)

    def again() -> str:
        told = _said(lambda: played.answer(name, closed.everybody))
        more = len(played.links[name].answers) > given
        return "" if more else told or "no answer: the round key was in memory only"

    said = {}
    played.restart(name)
    said["after a restart"] = again()
    played.give_secret(name, key)
    said["after a restart, the round key having survived"] = again()
    played.restore(name, before)
    said["from a restored snapshot"] = again()
    # Control: both the key and an older journal, which the claim excludes.
    played.give_secret(name, key)
    answered = again() == ""
    return [
        Case(
            f"real agents: a second answer {what}",
            control="with an older journal and a key that survived it answers twice"
            if answered
            else "not even with an older journal and a key that survived",
            control_worked=answered,
            defended=told[:200] or "answered twice",
            held=bool(told),
        )
        for what, told in said.items()
    ]


def _second_plan(played: PlayedRound, closed: _Closed) -> Case:
    """Another plan record for the round, without the last site: under it the others would commit again."""
    *rest, left_out = played.names
    signed, other = played.plan_of(rest)
    played.show_plan(signed, other, rest)
    said = {
        name: _said(lambda name=name: played.agents[name].upload.upload_and_commit(ROUND, other.digest))  # type: ignore[misc]
        for name in rest
    }
    again = [name for name in rest if other.digest in played.links[name].committed]
    kept = ("plan_record", "commit_record", "attempt", "ciphertext_root", "share_root", "chunk_count")
    for name in rest:
        played.forget(name, *kept, "acknowledgement", "answered_close")
        played.agents[name].upload.upload_and_commit(ROUND, other.digest)
    close = played.close_of(other, rest)
    for name in rest:
        played.agents[name].protection.acknowledge(ROUND)
        played.answer(name, close)
    # The first sum is opened by who is in both plans.
    reader = rest[-1]
    difference = played.open(closed.plan, closed.everybody, played.names, reader) - played.open(
        other, close, rest, reader
    )
    off = _off(played, difference, left_out)
    return Case(
        "real agents: a second plan record for the round",
        control=f"with the journal's check taken out they commit, deal and answer again: the difference of the "
        f"two sums is {left_out}'s update, to {off:.1e}",
        control_worked=off <= 2 * played.params.error_bound(len(played.names)),
        defended=" / ".join(sorted(set(said.values())))[:200] or "committed under it",
        held=all(said.values()) and not again,
    )


def _real_agents(folder: Path) -> list[Case]:
    """One round in which four real agents are shown two of everything."""
    with PlayedRound(folder / "hospitals") as played:
        closed = _begin(played)
        name = played.names[1]
        # A copy of a database in use is not whole.
        secret = played.secret(name)
        played.stop(name)
        played.snapshot(name, folder / "before")
        played.restart(name)
        played.give_secret(name, secret)
        cases = _two_closes(played, closed)
        cases += _answers_once(played, closed, folder / "before")
        return [*cases, _second_plan(played, closed)]


def run(context: Context) -> Result:
    """All n and t of small rounds, then the member that answers once."""
    largest = 5 if context.fast else 7
    cases = []
    for n in range(3, largest + 1):
        for t in range(n // 2 + 1, n):
            context.note(f"n = {n}, t = {t}")
            cases.append(_pair(n, t, context.seed))
    context.note("real agents")
    context.folder.joinpath("real").mkdir()
    cases += _real_agents(context.folder / "real")
    safe = all(
        2 * least_threshold(n) - n > colluders_withstood(least_threshold(n), n) for n in range(3, 1001)
    )
    result = Result.of_cases(
        cases,
        "With 2t - n colluders two sets of one round open, and their difference is one hospital's update; with one "
        "colluder fewer they never do, and the rules keep every study of 3 to 1,000 sites below that. A member answers "
        "one set a round: not again after a restart, nor from a restored snapshot.",
        defended={"rule 4 keeps 3 to 1,000 sites below 2t - n": safe},
        pictures=[
            plot("Colluders needed (red) and withstood (green), by sites in the round", _draw, height=2.6)
        ],
        notes=(
            "The cases of n and t are played with the suite's own code in one process; those called real agents with "
            "agents as shipped (policy, ledger, journal on disk, training), whose coordinator the row plays.",
        ),
    )
    return result if safe else Result.of_cases([], "rule 4 is broken")


def _draw(axes: Any) -> None:
    sites = range(3, 33)
    axes.step(sites, [2 * least_threshold(n) - n for n in sites], color=OFF, where="mid")
    axes.step(sites, [colluders_withstood(least_threshold(n), n) for n in sites], color=ON, where="mid")
    axes.set_xlabel("sites in the round")
    axes.set_ylabel("colluders")


ROW = Row(
    id="T08",
    title="two contributor sets or two plans for one round",
    adversary="The coordinator, which shows members different records, with c colluding sites.",
    holds="All ciphertexts, everything sealed to the colluders, their signatures.",
    source="Our own review; the quorum argument is that of Byzantine quorum systems (Malkhi and Reiter, 1998).",
    metric="whether two sets of one round open, for c on both sides of 2t - n",
    passes="never below 2t - n (control: at 2t - n they do), and no member answers twice",
    seeds=(8,),
    fast_seconds=10,
    full_seconds=40,
    run=run,
)
