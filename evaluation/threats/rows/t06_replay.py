"""T06: updates that come late, twice or again, at a real coordinator over two rounds."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cipherward.crypto.labels import Label
from cipherward.crypto.quorum.chunks import ChunkOpener
from cipherward.crypto.records import StudyTrust, verify_commit
from cipherward.errors import CipherwardError
from cipherward.evaluation.threats.bypass import replaced
from cipherward.evaluation.threats.kit.made_up import Contribution, MadeUpSite, begin, finish, vectors
from cipherward.evaluation.threats.kit.service import Service, study_file
from cipherward.evaluation.threats.row import Case, Context, Result, Row
from cipherward.proto.v1 import coordinator_pb2 as pb

SUITES = ("shared-key", "quorum")
NAMES = ("alpha", "beta", "gamma", "delta")
LATE = "delta"
UPLOAD_SECONDS = 10
Vectors = dict[str, NDArray[np.float32]]


def _said(action: Callable[[], object]) -> str:
    """Empty if it was taken."""
    try:
        action()
    except CipherwardError as error:
        return str(error)
    return ""


def _exact(vectors_of: Vectors, names: tuple[str, ...]) -> NDArray[np.float64]:
    total: NDArray[np.float64] = np.sum([vectors_of[name].astype(np.float64) for name in names], axis=0)
    return total


def _join(sites: list[MadeUpSite], number: int) -> Any:
    for site in sites:
        site.join(number)
    plans = [site.plan(number) for site in sites]
    return plans[0]


@dataclass
class _Seen:
    """What became of one study of two rounds."""

    said: dict[str, str] = field(default_factory=dict)
    """To each attack; empty: taken."""
    off: list[float] = field(default_factory=list)
    """How far each round's sum is from that of what was committed in it."""
    extra: list[float] = field(default_factory=list)
    """How far what is too much in it is from the updates that do not belong there."""
    bound: float = 0.0


def _two_rounds(service: Service, trust: StudyTrust, seed: int) -> _Seen:
    """Round 1, in which one hospital is late and another sends twice; round 2, in which all that comes again."""
    seen = _Seen(bound=trust.params.error_bound(len(NAMES)))
    with ExitStack() as stack:
        sites = begin([service.member(one) for one in NAMES], service.address, trust)
        for site in sites:
            stack.callback(site.close)
        alpha, late = sites[0], sites[-1]
        first, second = (vectors(NAMES, alpha.length, seed + number) for number in (1, 2))
        plan = _join(sites, 1)
        in_time = tuple(one for one in NAMES if one != LATE)
        made = {one.name: one.encrypt(1, plan, first[one.name]) for one in sites}
        again = alpha.encrypt(1, plan, second["alpha"], attempt=2)
        for site in sites:
            site.upload(made[site.name])
            if site.name != LATE:
                site.commit(made[site.name])
            if site is alpha:  # the very same record: answered again, counted once
                site.commit(made["alpha"])
                told = _said(lambda: alpha.upload(again)) or _said(lambda: alpha.commit(again))
                seen.said["a second update of the same site in a round"] = told
        late.until(1, pb.PHASE_ACKNOWLEDGE, pb.PHASE_SUM, pb.PHASE_RELEASE)
        seen.said["a commit behind the close of its round"] = _said(lambda: late.commit(made[LATE]))
        _note(seen, finish(sites[:-1], 1, plan), _exact(first, in_time), [first[LATE], second["alpha"]])
        plan_2 = _join(sites, 2)
        seen.said["the late commit, offered in the next round"] = _said(lambda: late.commit(made[LATE]))
        seen.said["the late upload, offered in the next round"] = _said(lambda: late.upload(made[LATE]))
        seen.said["an older round's commit, replayed"] = _said(lambda: _post_again(alpha, made["alpha"]))
        seen.said["an older round's upload, replayed"] = _said(lambda: alpha.upload(made["alpha"]))
        seen.said["a committed update passed on under the next plan by the coordinator"] = _said(
            lambda: verify_commit(_signed(alpha, made["alpha"]), alpha.trust, plan_2, "alpha")
        )
        for site in sites:
            site.contribute(2, second[site.name])
        older = [*first.values(), second["alpha"]]
        _note(seen, finish(sites, 2, plan_2), _exact(second, NAMES), older)
    return seen


def _note(seen: _Seen, opened: NDArray[Any], exact: NDArray[Any], others: list[Any]) -> None:
    seen.off.append(float(np.abs(opened - exact).max()))
    wrong = opened - exact - np.sum([one.astype(np.float64) for one in others], axis=0)
    seen.extra.append(float(np.abs(wrong).max()))


def _both(context: Context, name: str, *changes: str) -> dict[str, _Seen]:
    """Both suites' studies at one coordinator, at the same time."""
    with Service(context.folder / name, NAMES, changes) as service:
        service.start()
        trusts = {
            suite: service.study(study_file(suite, NAMES[0], name=suite, minimum=3, upload=UPLOAD_SECONDS))
            for suite in SUITES
        }
        with ThreadPoolExecutor(len(SUITES)) as pool:
            jobs = {suite: pool.submit(_two_rounds, service, trusts[suite], context.seed) for suite in SUITES}
            return {suite: job.result() for suite, job in jobs.items()}


def _signed(site: MadeUpSite, made: Contribution) -> Any:
    return site.sign(Label.COMMIT, site.commitment(made))


def _post_again(site: MadeUpSite, made: Contribution) -> None:
    """The commit of round 1 as a record of this one: an older record must not be counted for the newer round."""
    commit = site.commitment(made)
    commit.round = 2
    site.post("PostCommit", Label.COMMIT, commit)


def run(context: Context) -> Result:
    """Both suites: at a coordinator that counts what is there, and as shipped, with its limits of calls."""
    context.note("a coordinator that counts what is there")
    with replaced(ChunkOpener, "_check_zero", lambda *_: None):
        blind = _both(context, "off", "no-rates", "keeps-everything", "counts-anything")
    context.note("as shipped")
    shipped = _both(context, "on")
    cases = []
    for suite in SUITES:
        off = blind[suite]
        for what, told in shipped[suite].said.items():
            number = 0 if "in a round" in what or "behind the close" in what else 1
            exactly = off.extra[number] <= 3 * off.bound  # of up to nine updates
            shown = "by what was not committed in it" if exactly else "and opens to nothing"
            cases.append(
                Case(
                    f"{suite}: {what}",
                    control=f"counted: round {number + 1}'s sum is off by {off.off[number]:.3g}, {shown}",
                    control_worked=off.off[number] > 0.1 and (exactly or suite == "quorum"),
                    defended=told or "accepted",
                    held=bool(told),
                )
            )
    exact = all(max(seen.off) <= seen.bound for seen in shipped.values())
    accepted = sum(not case.held for case in cases)
    result = Result.of_cases(
        cases,
        f"{accepted} of {len(cases)} late, doubled or replayed updates were accepted, and both rounds' sums were "
        "exactly those of what was committed in them. The same coordinator counts each of them if it does not ask for "
        "the round and the commit.",
        defended={
            "accepted": accepted,
            "both sums exact": exact,
            **{f"largest error of the two sums, {suite}": max(seen.off) for suite, seen in shipped.items()},
        },
        notes=(
            "Limits on how often a site may call are lifted at the coordinator of the control, and on as shipped.",
            "In the quorum suite an update of another round is encrypted under other polynomials: counted, it spoils "
            "the sum, and the zero elements show it. They are not looked at in the control.",
        ),
    )
    return replace(result, held=result.held and exact)


ROW = Row(
    id="T06",
    title="late, duplicate and replayed updates",
    adversary="A hospital that is late or lies, or a coordinator that passes on what it has.",
    holds="Its own keys and everything that was sent before.",
    source="Reproduced on NVIDIA FLARE 2.9.0 (2026): the late update of a killed site entered the next round's sum.",
    metric="updates accepted, and whether each round's sum is exactly that of its committed updates",
    passes="none is accepted, and both sums are exact within the error bound",
    seeds=(6,),
    fast_seconds=45,
    full_seconds=45,
    run=run,
)
