"""T06: updates that come late, twice or again, at a real coordinator over two rounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cipherward.crypto.labels import Label
from cipherward.crypto.records import verify_commit
from cipherward.crypto.shared_key.chunks import Sum, pack_sum, parse_sum
from cipherward.crypto.shared_key.params import own_params
from cipherward.crypto.suites.registry import suite
from cipherward.crypto.suites.site_side import site_side
from cipherward.errors import CipherwardError
from cipherward.evaluation.threats.kit.made_up import Contribution, MadeUpSite, begin, finish, vectors
from cipherward.evaluation.threats.kit.service import Service, study_file
from cipherward.evaluation.threats.row import Case, Context, Result, Row
from cipherward.proto.v1 import coordinator_pb2 as pb

NAMES = ("alpha", "beta", "gamma", "delta")
LATE = "delta"
UPLOAD_SECONDS = 4
Vectors = dict[str, NDArray[np.float32]]


def _said(action: Callable[[], object]) -> str:
    """Empty if it was taken."""
    try:
        action()
    except CipherwardError as error:
        return str(error)
    return ""


def _blindly(site: MadeUpSite, uploads: list[list[bytes]]) -> NDArray[Any]:
    """Control: what an aggregator opens that adds up whatever has come, without asking for which round, or whether it
    had it before."""
    params = own_params(site.params)
    primes = np.array(params.moduli, dtype=np.uint64)[:, None]
    with suite(params.suite).chunk_adder(params) as adder:
        parts = [parse_sum(params, adder.add([one[0]], 0, site.length), 0, site.length)[0] for one in uploads]
    total: Sum = parts[0]
    for part in parts[1:]:
        total = Sum((total.c0 + part.c0) % primes, (total.c1 + part.c1) % primes)
    if site.key is None:
        raise RuntimeError("the made-up sites have no key")
    with site_side(params.suite).cipher(site.key, b"") as cipher:
        opened: NDArray[Any] = cipher.open_sum([pack_sum(params, [total], 0)], site.length, len(uploads))
    return opened


def _exact(vectors_of: Vectors, names: tuple[str, ...]) -> NDArray[np.float64]:
    total: NDArray[np.float64] = np.sum([vectors_of[name].astype(np.float64) for name in names], axis=0)
    return total


def _join(sites: list[MadeUpSite], number: int) -> Any:
    for site in sites:
        site.join(number)
    plans = [site.plan(number) for site in sites]
    return plans[0]


def _two_rounds(context: Context, name: str) -> tuple[dict[str, str], tuple[float, float], dict[str, str]]:
    """What was said to each attack; the sums' largest error and its bound; what a blind aggregator makes of each
    (shared-key suite)."""
    with Service(context.folder / name, NAMES, ("no-rates",)) as service:
        service.start()
        trust = service.study(study_file(name, NAMES[0], minimum=3, upload=UPLOAD_SECONDS))
        sites = begin([service.member(one) for one in NAMES], service.address, trust)
        alpha, late = sites[0], sites[-1]
        first, second = (vectors(NAMES, alpha.length, context.seed + number) for number in (1, 2))
        said: dict[str, str] = {}
        plan = _join(sites, 1)
        in_time = tuple(one for one in NAMES if one != LATE)
        made = {one.name: one.encrypt(1, plan, first[one.name]) for one in sites}
        again = alpha.encrypt(1, plan, second["alpha"], attempt=2)
        for site in sites:
            site.upload(made[site.name])
            if site.name != LATE:
                site.commit(made[site.name])
        alpha.commit(made["alpha"])  # the very same record: answered again, counted once
        said["a second update of the same site in a round"] = _said(lambda: alpha.upload(again)) or _said(
            lambda: alpha.commit(again)
        )
        late.until(1, pb.PHASE_ACKNOWLEDGE, pb.PHASE_SUM, pb.PHASE_RELEASE)
        said["a commit behind the close of its round"] = _said(lambda: late.commit(made[LATE]))
        opened = finish(sites[:-1], 1, plan)
        errors = [float(np.abs(opened - _exact(first, in_time)).max())]
        plan_2 = _join(sites, 2)

        def moved(old: Contribution) -> Contribution:
            """An upload of round 1 under round 2's plan."""
            return replace(old, number=2, plan=plan_2)

        said["the late commit, offered in the next round"] = _said(lambda: late.commit(made[LATE]))
        said["the late upload, offered in the next round"] = _said(lambda: late.upload(made[LATE]))
        said["an older round's commit, replayed"] = _said(lambda: _post_again(alpha, made["alpha"]))
        said["an older round's upload, replayed"] = _said(lambda: alpha.upload(made["alpha"]))
        said["a committed update passed on under the next plan by the coordinator"] = _said(
            lambda: verify_commit(
                _signed(alpha, made["alpha"]), alpha.trust, moved(made["alpha"]).plan, "alpha"
            )
        )
        for site in sites:
            site.contribute(2, second[site.name])
        opened = finish(sites, 2, plan_2)
        errors.append(float(np.abs(opened - _exact(second, NAMES)).max()))
        bound = trust.params.error_bound(len(NAMES))
        blind: dict[str, str] = {}
        if not alpha.one_time:
            fresh = [site.encrypt(2, plan_2, second[site.name]).chunks for site in sites]
            for what in said:
                extra = made[LATE if "late" in what or "behind" in what else "alpha"].chunks
                off = np.abs(_blindly(alpha, [*fresh, extra]) - _exact(second, NAMES)).max()
                blind[what] = f"added: the sum is off by {off:.3g}" if off > 0.1 else ""
    return said, (max(errors), bound), blind


def _signed(site: MadeUpSite, made: Contribution) -> Any:
    return site.sign(Label.COMMIT, site.commitment(made))


def _post_again(site: MadeUpSite, made: Contribution) -> None:
    """The commit of round 1 as a record of this one: an older record must not be counted for the newer round."""
    commit = site.commitment(made)
    commit.round = 2
    site.post("PostCommit", Label.COMMIT, commit)


def run(context: Context) -> Result:
    """Both suites."""
    cases: list[Case] = []
    errors: dict[str, float] = {}
    bounds: dict[str, float] = {}
    blind: dict[str, str] = {}
    for name in ("shared-key", "quorum"):
        context.note(name)
        said, found, seen = _two_rounds(context, name)
        blind = seen or blind
        errors[name], bounds[name] = found
        cases += [
            Case(
                f"{name}: {what}",
                blind[what] or "no effect",
                bool(blind[what]),
                told or "accepted",
                bool(told),
            )
            for what, told in said.items()
        ]
    exact = all(errors[name] <= bounds[name] for name in ("shared-key", "quorum"))
    accepted = sum(not case.held for case in cases)
    result = Result.of_cases(
        cases,
        f"{accepted} of {len(cases)} late, doubled or replayed updates were accepted, and both rounds' sums were "
        "exactly those of what was committed in them. An aggregator that adds up what comes counts each of them.",
        defended={
            "accepted": accepted,
            "both sums exact": exact,
            **{f"largest error of the two sums, {name}": error for name, error in errors.items()},
        },
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
    fast_seconds=35,
    full_seconds=35,
    run=run,
)
