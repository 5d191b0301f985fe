"""T23: what was signed and stored is changed behind everybody's back; a wrong sum; a forged key; a framed member."""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from cipherward.cli.app import main
from cipherward.coordinator.audit.posts import PostCheck
from cipherward.coordinator.audit.verify import Auditor
from cipherward.crypto.quorum import shamir
from cipherward.crypto.quorum.chunks import ChunkOpener
from cipherward.crypto.quorum.decoding import PRIME
from cipherward.errors import CipherwardError, VerificationError
from cipherward.evaluation.threats.bypass import replaced
from cipherward.evaluation.threats.kit import lattice
from cipherward.evaluation.threats.kit.attacked import Attacked
from cipherward.evaluation.threats.kit.parties import SITE, Parties, Round
from cipherward.evaluation.threats.kit.parties import vectors as small_vectors
from cipherward.evaluation.threats.row import Case, Context, Figure, Result, Row
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.coordinator_pb2 import StudyState
from cipherward.site_agent.daemon.quorum.answering import report_wrong

AUDITED = "audited"
POSTS = ("join", "commit", "report")
POST = "study = ? and round = ? and kind = ? and site = ?"
SHIFT = 2.0
LENGTH = 24


# The transcript and the store, by the command that an auditor runs


def _command(*arguments: str) -> tuple[int, str]:
    """Run ``cipherward`` here: its exit status and what it printed."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        return main([*arguments]), said.getvalue()


def _audit(folder: Path, anchor: Path, study: str) -> dict[str, Any]:
    """What ``audit verify`` finds of the study."""
    _, said = _command(
        "audit", "verify", "--json", "--dir", str(folder), "--anchor", str(anchor), "--study", study
    )
    try:
        found = json.loads(said)
    except ValueError:
        return {"right": False, "wrong": {"what": f"refused: {said.strip()[-200:]}"}}
    one: dict[str, Any] = found["studies"][0]
    return one


def _place(wrong: dict[str, Any] | None) -> str:
    """The finding and where it is."""
    if wrong is None:
        return "not noticed"
    where = [f"{name} {wrong[name]}" for name in ("round", "site", "chunk") if wrong.get(name) is not None]
    return f"audit verify: {', '.join(where)}: {wrong['what']}"


@dataclass(frozen=True)
class _Change:
    """Something done to a copy of the store. ``site`` and ``chunk``: what the audit must name besides the round."""

    what: str
    make: Callable[[Path], None]
    number: int
    site: str | None = None
    chunk: int | None = None
    by_posts: bool = False
    """Only an audit that compares the stored posts with the signed records can find it."""


def _sql(folder: Path, statement: str, *values: Any) -> None:
    """One statement that changes something; RuntimeError if there was nothing to change."""
    with sqlite3.connect(folder / "coordinator.db") as connection:
        if connection.execute(statement, values).rowcount == 0:
            raise RuntimeError(f"the store has nothing for: {statement}")


def _rewrite(folder: Path, table: str, where: str, *values: Any) -> None:
    """One bit of the payload of one signed record."""
    with sqlite3.connect(folder / "coordinator.db") as connection:
        query = f"select rowid, signed from {table} where {where} limit 1"  # noqa: S608 - our own names
        rowid, raw = connection.execute(query, values).fetchone()
        signed = Signed.FromString(raw)
        payload = bytearray(signed.payload)
        payload[len(payload) // 2] ^= 1
        signed.payload = bytes(payload)
        change = f"update {table} set signed = ? where rowid = ?"  # noqa: S608 - our own names
        connection.execute(change, (signed.SerializeToString(), rowid))


def _flip_chunk(folder: Path, chunk_set: str) -> None:
    """One bit of the first stored chunk of an update or sum."""
    with sqlite3.connect(folder / "coordinator.db") as connection:
        query = "select blob from segments where chunk_set = ?"
        (name,) = connection.execute(query, (chunk_set,)).fetchone()
    path = next((folder / "blobs").rglob(name))
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)


def _flip_post(kind: str, site: str) -> Callable[[Path], None]:
    return lambda folder: _rewrite(folder, "posts", POST, AUDITED, 2, kind, site)


def _drop_post(kind: str, site: str, number: int = 2) -> Callable[[Path], None]:
    return lambda folder: _sql(folder, f"delete from posts where {POST}", AUDITED, number, kind, site)  # noqa: S608


def _changes(site: str) -> list[_Change]:
    """What is changed in round 1 or 2 of a finished study of two rounds, one at a time."""
    found = [
        _Change(
            "one bit of a stored upload", lambda f: _flip_chunk(f, f"{AUDITED}/2/update/{site}/1"), 2, site, 0
        ),
        _Change("one bit of a stored sum", lambda f: _flip_chunk(f, f"{AUDITED}/2/sum"), 2, None, 0),
        _Change(
            "the last signed record removed",
            lambda f: _sql(f, "delete from records where study = ? and round = 2 and kind = 3", AUDITED),
            1,
        ),
    ]
    for kind, name in ((1, "round"), (2, "plan"), (3, "close")):
        where = f"study = ? and round = 1 and kind = {kind}"
        found.append(
            _Change(f"one bit of a {name} record", lambda f, w=where: _rewrite(f, "records", w, AUDITED), 1)  # type: ignore[misc]
        )
    for post in POSTS:
        found += [
            _Change(f"one bit of a stored {post}", _flip_post(post, site), 2, site, by_posts=post == "join")
        ]
        found += [_Change(f"a {post} removed from the store", _drop_post(post, site), 2, site, by_posts=True)]
    return found


def _store_case(change: _Change, store: Path, anchor: Path, work: Path) -> Case:
    """The change on a copy, which the coordinator itself does not notice."""
    shutil.copytree(store, work)
    change.make(work)
    status, _ = _command("coordinator", "status", "--dir", str(work))
    unseen, control = status == 0, "the coordinator reports its studies as before"
    if ("a " in change.what[:2] and "removed" in change.what) or "stored join" in change.what:
        # Where the check of the stored posts finds it, an audit without that check does not.
        with (
            replaced(PostCheck, "check", lambda *_: None),
            replaced(Auditor, "_check_contributors", lambda *_: None),
        ):
            blind = _audit(work, anchor, AUDITED)["right"]
        unseen, control = unseen and blind, f"{control}; an audit that does not look at posts finds nothing"
    wrong = _audit(work, anchor, AUDITED)["wrong"]
    shutil.rmtree(work)
    named = wrong is not None and (change.number, change.site, change.chunk) == (
        wrong.get("round"), wrong.get("site"), wrong.get("chunk"),
    )  # fmt: skip
    return Case(
        f"{change.what}, in the coordinator's store",
        control=control if unseen else "it is noticed anyhow",
        control_worked=unseen,
        defended=_place(wrong)[:260],
        held=named,
    )


def _unreported(store: Path, anchor: Path, work: Path, site: str) -> Case:
    """A report of an older round, to which no signed record refers: the audit says that there is none."""
    shutil.copytree(store, work)
    _drop_post("report", site, 1)(work)
    found = _audit(work, anchor, AUDITED)
    status, _ = _command("coordinator", "status", "--dir", str(work))
    shutil.rmtree(work)
    said = found.get("not_reported") == [{"round": 1, "site": site}]
    return Case(
        "an older round's model report removed from the store",
        control="the coordinator reports its studies as before" if status == 0 else "it is noticed anyhow",
        control_worked=status == 0,
        defended=f"audit verify says that {site} reported no model in round 1" if said else "not noticed",
        held=said and bool(found["right"]),
    )


# Real agents, and a coordinator that alters the sum


def _agents(context: Context) -> tuple[list[Case], bool]:
    """One coordinator and its hospitals: an honest study, one whose sum it alters, and one whose sites do not verify
    sums. Then what an auditor makes of its store."""
    changes = (f"wrong-sums={SHIFT}",)
    with Attacked(context.folder / "hospitals", changes, ("keeps-vectors",)) as attacked:
        attacked.start()
        attacked.study(AUDITED, "quorum", rounds=2)
        attacked.study("altered", "quorum")
        trust = attacked.study("blind-altered", "quorum", collective_verification=False)
        for name in ("altered", "blind-altered"):
            attacked.wait(lambda name=name: attacked.decided(name), f"a verdict on {name}")  # type: ignore[misc]
        finished = StudyState.STUDY_STATE_FINISHED
        attacked.wait(lambda: attacked.status(AUDITED).state == finished, "the honest study's end")
    names = attacked.names
    believed = [name for name in names if attacked.applied(name, "blind-altered")]
    exact = np.sum([attacked.sent(name, "blind-altered") for name in names], axis=0)
    opened = attacked.opened(names[0], "blind-altered")
    off = 0.0 if opened is None else float(opened[0] - exact[0])
    worked = len(believed) == len(names) and abs(off - SHIFT) <= trust.params.error_bound(len(names))
    named = [
        name
        for name in names
        if not attacked.applied(name, "altered")
        and any("chunk 0 of the sum of round 1" in said for said in attacked.incidents(name, "altered"))
    ]
    honest = [name for name in names if attacked.applied(name, AUDITED) == 2]
    blamed = [name for name in names if attacked.incidents(name, AUDITED)]
    store, anchor = attacked.consortium.coordinator, attacked.consortium.anchor
    control = f"where sites do not verify sums, {len(believed)} agents apply it, off by {off:.6f}"
    cases = [
        Case(
            f"the coordinator adds {SHIFT:g} to a value of the encrypted sum",
            control,
            worked,
            f"{len(named)} of {len(names)} real agents refuse it and name chunk 0 of round 1",
            len(named) == len(names),
        )
    ]
    for name in ("altered", "blind-altered"):
        wrong = _audit(store, anchor, name)["wrong"] or {}
        cases.append(
            Case(
                f"the same, seen by an auditor ({name})",
                control,
                worked,
                _place(wrong or None),
                (wrong.get("round"), wrong.get("chunk")) == (1, 0),
            )
        )
    context.note("the store, changed")
    work = context.folder / "changed"
    cases += [_store_case(change, store, anchor, work) for change in _changes(names[1])]
    cases.append(_unreported(store, anchor, work, names[1]))
    right = _audit(store, anchor, AUDITED)["right"] and len(honest) == len(names) and not blamed
    return cases, bool(right)


# A key of the sum forged by lattice reduction


def _forged(parameter_set: str) -> Case:
    played = lattice.play(parameter_set)
    forger = lattice.Forger(played)
    differences = forger.differences()
    whole = ChunkOpener._check_zero

    def few(self: ChunkOpener, opened: Any) -> None:
        whole(self, opened[:1, : lattice.CHECKED])

    off = 0.0
    with replaced(ChunkOpener, "_check_zero", few), suppress(VerificationError):
        opened = played.opened(forger.answers(differences[0]))
        off = float(np.abs(opened - played.total).max())
    refused = 0
    for difference in differences:
        try:
            played.opened(forger.answers(difference))
        except VerificationError:
            refused += 1
    bound = played.params.error_bound(lattice.SITES)
    return Case(
        f"a key of the sum forged by LLL, {parameter_set}",
        control=f"where {lattice.CHECKED} zeros are checked it opens a sum that is off by {off:.3g}",
        control_worked=off > 100 * bound,
        defended=f"{refused} of {len(differences)} forged keys are refused by a whole zero element",
        held=bool(differences) and refused == len(differences),
    )


# A dealer that frames a member


def _framed(seed: int) -> list[Case]:
    parties = Parties(4, length=LENGTH)
    played, trained = Round(parties, parties.names), small_vectors(parties.names, LENGTH, seed)
    for name in parties.names:
        played.upload(name, trained[name])
    dealer, framed, reader = parties.names[-1], parties.names[1], parties.names[0]
    rng = np.random.default_rng(seed)
    wrong = rng.integers(0, PRIME, shamir.COEFFICIENTS, dtype="<u4").tobytes()
    played._shares[dealer, framed] = wrong  # sealed and signed for by the dealer: it opens
    who = parties.names
    exact = np.sum([trained[name].astype(np.float64) for name in who], axis=0)
    combined = played.key_of_sum(who, who, reader)
    opened = played.open_with(combined.key, played.total(who), len(who))
    error = float(np.abs(opened - exact).max())
    place = played.plan.places[framed]
    told = _told(played, combined)
    innocent = played.opened_answer(framed, who, reader) == SITE.add_shares(
        parties.params, [played.opened_share(one, framed) for one in who]
    )
    blamed = combined.wrong == (place + 1,)
    first = {
        played.plan.places[name] + 1: played.opened_answer(name, who, reader)
        for name in who[: played.plan.threshold]
    }
    stopped = ""
    try:
        key = next(SITE.combine(parties.params, first, played.plan.threshold, len(who))).key
        played.open_with(key, played.total(who), len(who))
    except CipherwardError as failed:
        stopped = str(failed)
    return [
        Case(
            "a dealer deals a wrong share, so that a member's answer is wrong",
            control=f"who blames the answer that does not fit blames {framed}, which added up what it was dealt"
            if blamed and innocent
            else "nobody would be blamed",
            control_worked=blamed and innocent,
            defended=f"said is: {told}",
            held=framed in told and "or a dealer" in told,
        ),
        Case(
            "the same, to stop the round",
            control=f"with the first t answers alone: {stopped[:120]}" if stopped else "it opens",
            control_worked=bool(stopped),
            defended=f"the sum opens without that answer, exact within {error:.1e}",
            held=error <= parties.params.error_bound(len(who)),
        ),
    ]


def _told(played: Round, combined: Any) -> str:
    """What a site says and keeps of it."""
    said: list[str] = []
    study: Any = SimpleNamespace(
        log=SimpleNamespace(warning=lambda *_, **__: None),
        journal=SimpleNamespace(incident=lambda _, message: said.append(message)),
    )
    closed: Any = SimpleNamespace(plan=played.plan)
    report_wrong(study, 1, closed, combined)
    return said[0] if said else ""


def run(context: Context) -> Result:
    """All four."""
    context.note("real agents and an altered sum")
    cases, right = _agents(context)
    context.note("a forged key")
    cases += [_forged(name) for name in (("q32",) if context.fast else ("q32", "q16"))]
    context.note("a framed member")
    cases += _framed(context.seed)
    defended: dict[str, Figure] = {"an untouched store and study are right": right}
    result = Result.of_cases(
        cases,
        f"{sum(case.held for case in cases)} of {len(cases)} forgeries were caught: the audit names the round, and "
        "the site or chunk, of what was changed or removed, every real agent names the chunk of an altered sum, keys "
        "forged by lattice reduction open nothing, and a member framed by a dealer is not blamed.",
        defended=defended,
        notes=(
            "No signed record lists the model reports of older rounds: of one that is removed the audit says that "
            "there is none, which may be true. Each site keeps its own.",
            "In the shared-key suite nobody verifies sums together: an audit is the only check.",
        ),
    )
    # An audit that finds fault with everything would pass.
    return (
        result if right else Result.of_cases([], "the audit or an agent finds fault with an untouched study")
    )


ROW = Row(
    id="T23",
    title="tampered transcript, forged sum, framed member",
    adversary="A coordinator or whoever writes to its disk; the last member to answer; a dealer.",
    holds="The store; all ciphertexts; for the forged key every answer and so the key of the sum.",
    source="Our own review; LLL: Lenstra, Lenstra, Lovasz 1982; transcripts: RFC 9162.",
    metric="forgeries that are believed, and who is blamed",
    passes="none is believed, the place is named, and nobody is blamed wrongly; an untouched store is right",
    seeds=(23,),
    fast_seconds=15,
    full_seconds=60,
    run=run,
)
