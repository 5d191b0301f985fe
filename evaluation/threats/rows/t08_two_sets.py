"""T08: two contributor sets for one round. Half of the honest members see one, half see one without a site, and the
colluders answer both: where both open, the difference is that site's update."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cipherward.clock import SystemClock
from cipherward.crypto import manifest_rules
from cipherward.crypto.labels import Label
from cipherward.crypto.manifest_rules import colluders_withstood, least_threshold
from cipherward.errors import CipherwardError
from cipherward.evaluation.threats.bypass import replaced
from cipherward.evaluation.threats.kit.parties import Parties, Round, Who, vectors
from cipherward.evaluation.threats.plots import OFF, ON, plot
from cipherward.evaluation.threats.row import Case, Context, Result, Row
from cipherward.proto.v1 import round_pb2 as rp
from cipherward.site_agent.daemon.quorum.secrets import RoundSecrets
from cipherward.site_agent.journal.journal import Journal
from cipherward.site_agent.state.folder import SiteFolder
from cipherward.site_agent.state.opening import open_state
from cipherward.site_agent.state.tables import studies

LENGTH = 6
STUDY = "attacked"


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


class _Member:
    """A site's journal on disk, and what it keeps in memory."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = SiteFolder(folder)
        self._folder.prepare()
        self.start()
        with self._engine.begin() as connection:
            connection.execute(
                studies.insert().values(
                    study=STUDY, state="running", transcript=bytes(32), model_digest=bytes(32)
                )
            )

    def start(self) -> None:
        """As a process begins: from the disk alone."""
        self._engine = open_state(self._folder)
        self.journal = Journal(self._engine, STUDY, SystemClock())
        self.secrets = RoundSecrets()

    def stop(self) -> None:
        self.secrets.forget(10**6)
        self._engine.dispose()

    def answer(self, close: bytes) -> None:
        """The order that the agent keeps: the key must be there, then the journal, then the answer."""
        if self.secrets.of(1) is None:
            raise CipherwardError("the round key is gone", why="it was in memory only")
        self.journal.write(1, answered_close=close)


def _answers_once(folder: Path) -> list[Case]:
    """The second close record, before and after a restart and a restored snapshot."""
    one, two = bytes([1]) * 32, bytes([2]) * 32
    member = _Member(folder / "member")
    member.secrets.fresh(1, 600)
    member.stop()
    shutil.copytree(folder / "member", folder / "before")
    member.start()
    key = member.secrets.fresh(1, 600)
    member.answer(one)
    said = {"in the same process": _said(lambda: member.answer(two))}
    member.stop()
    member.start()
    said["after a restart"] = _said(lambda: member.answer(two))
    member.secrets.fresh(1, 600).key = key.key
    said["after a restart, the round key having survived"] = _said(lambda: member.answer(two))
    member.stop()
    shutil.rmtree(folder / "member")
    shutil.copytree(folder / "before", folder / "member")
    member.start()
    said["from a restored snapshot"] = _said(lambda: member.answer(two))
    # Control: both the key and an older journal, which the claim excludes.
    member.secrets.fresh(1, 600).key = key.key
    without = _said(lambda: member.answer(two))
    member.stop()
    return [
        Case(
            f"a second answer {what}",
            control=without or "with an older journal and a key that survived it answers twice",
            control_worked=not without,
            defended=told or "answered twice",
            held=bool(told),
        )
        for what, told in said.items()
    ]


def _second_plan(folder: Path, seed: int) -> Case:
    """Another plan record for the round, without one of the sites."""
    parties = Parties(4, length=LENGTH)
    played, other = (Round(parties, parties.names[:count]) for count in (4, 3))
    member = _Member(folder / "planned")
    signed = [_plan_record(parties, one) for one in (played, other)]
    member.journal.accept_plan(1, signed[0])
    told = _said(lambda: member.journal.accept_plan(1, signed[1]))
    member.stop()
    # Control: one update under both plans and one key is a key used twice.
    trained = vectors(parties.names, LENGTH, seed)
    upload = played.upload(parties.names[0], trained[parties.names[0]])
    again = other.encrypt(parties.names[0], trained[parties.names[0]])
    differ = upload.commit.payload != again.commit.payload
    return Case(
        "a second plan record for the round",
        control="the same update is committed under both, in two sums" if differ else "nothing",
        control_worked=differ,
        defended=told or "accepted",
        held=bool(told),
    )


def _plan_record(parties: Parties, played: Round) -> Any:

    record = rp.PlanRecord(
        manifest_digest=parties.trust.digest, round=1, round_record_digest=played.plan.digest
    )
    return parties.sign("hub", Label.PLAN_RECORD, record)


def run(context: Context) -> Result:
    """All n and t of small rounds, then the member that answers once."""
    largest = 5 if context.fast else 7
    cases = []
    for n in range(3, largest + 1):
        for t in range(n // 2 + 1, n):
            context.note(f"n = {n}, t = {t}")
            cases.append(_pair(n, t, context.seed))
    cases += _answers_once(context.folder)
    cases.append(_second_plan(context.folder, context.seed))
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
            "The same with whole agents against a lying coordinator: tests/attacks/test_attack_two_sets.py.",
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
    fast_seconds=15,
    full_seconds=40,
    run=run,
)
