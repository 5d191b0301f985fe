"""T23: what was signed and stored is changed behind everybody's back; a wrong sum; a forged key; a framed member."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from cipherward.crypto.quorum import shamir
from cipherward.crypto.quorum.chunks import ChunkOpener
from cipherward.crypto.quorum.decoding import PRIME
from cipherward.errors import CipherwardError, VerificationError
from cipherward.evaluation.threats.bypass import replaced
from cipherward.evaluation.threats.kit import lattice
from cipherward.evaluation.threats.kit.made_up import begin, finish, vectors
from cipherward.evaluation.threats.kit.parties import SITE, Parties, Round
from cipherward.evaluation.threats.kit.parties import vectors as small_vectors
from cipherward.evaluation.threats.kit.service import Service, study_file
from cipherward.evaluation.threats.row import Case, Context, Figure, Result, Row
from cipherward.site_agent.daemon.quorum.answering import report_wrong

NAMES = ("alpha", "beta", "gamma", "delta")
SHIFT = 2.0
LENGTH = 24


# The transcript and the store, by the command that an auditor runs


def _audit(folder: Path, anchor: Path) -> tuple[bool, str]:
    """Whether all is right, and what is wrong."""
    command = [sys.executable, "-m", "cipherward.cli.app", "audit", "verify", "--json", "--dir", str(folder)]
    done = subprocess.run([*command, "--anchor", str(anchor)], capture_output=True, text=True, check=False)  # noqa: S603
    try:
        found = json.loads(done.stdout)
    except ValueError:
        return False, f"refused: {done.stderr.strip()[-200:]}"
    return bool(found["right"]), json.dumps([one["wrong"] for one in found["studies"]])


def _runs(folder: Path) -> bool:
    """Control: whether the coordinator's own status shows anything odd."""
    command = [sys.executable, "-m", "cipherward.cli.app", "coordinator", "status", "--dir", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0  # noqa: S603


def _flip_blob(folder: Path) -> str:
    blobs = sorted(
        (path for path in (folder / "blobs").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size
    )
    content = bytearray(blobs[-1].read_bytes())
    content[len(content) // 3] ^= 1
    blobs[-1].chmod(0o600)
    blobs[-1].write_bytes(content)
    return "one bit of a stored upload or sum"


def _blob_columns(connection: sqlite3.Connection, table: str) -> list[str]:
    return [
        name
        for _, name, kind, *_ in connection.execute(f"pragma table_info({table})")
        if "BLOB" in kind.upper()
    ]


def _edit_rows(folder: Path, table: str, where: str, edit: Callable[[bytes], bytes]) -> int:
    """Change the bytes of the first matching row's longest blob; how many rows were changed."""
    with sqlite3.connect(folder / "coordinator.db") as connection:
        columns = _blob_columns(connection, table)
        for rowid, *values in connection.execute(
            f"select rowid, {', '.join(columns)} from {table} {where} limit 1"  # noqa: S608 - our own names
        ).fetchall():
            at = max(range(len(values)), key=lambda place: len(values[place] or b""))
            connection.execute(
                f"update {table} set {columns[at]} = ? where rowid = ?",  # noqa: S608
                (edit(values[at]), rowid),
            )
            return 1
    return 0


def _flip_middle(content: bytes) -> bytes:
    found = bytearray(content)
    found[len(found) // 2] ^= 1
    return bytes(found)


def _changed_tables(folder: Path) -> list[tuple[str, Callable[[Path], str]]]:
    """A change to each kind of signed record that the store has."""
    with sqlite3.connect(folder / "coordinator.db") as connection:
        tables = [
            name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")
        ]
        signed = [
            table
            for table in tables
            if table in ("records", "posts", "manifests") and _blob_columns(connection, table)
        ]

    def edit(table: str) -> Callable[[Path], str]:
        def change(copy: Path) -> str:
            # Joins and commits are in the signed plan and close records as well, and are taken from there.
            where = "where kind = 'report'" if table == "posts" else ""
            if not _edit_rows(copy, table, where, _flip_middle):
                raise RuntimeError(f"the store has nothing in {table}")
            return f"one bit of a signed record in the table {table}"

        return change

    def drop(copy: Path) -> str:
        with sqlite3.connect(copy / "coordinator.db") as connection:
            connection.execute("delete from records where rowid = (select max(rowid) from records)")
        return "the last signed record removed"

    return [("upload", _flip_blob), *((table, edit(table)) for table in signed), ("removed", drop)]


def _transcript(context: Context) -> tuple[list[Case], bool]:
    folder = context.folder / "audited"
    with Service(folder, NAMES) as service:
        service.start()
        trust = service.study(study_file("quorum", "", rounds=1))
        sites = begin([service.member(name) for name in NAMES], service.address, trust)
        for site in sites:
            site.join(1)
        sent, plan = vectors(NAMES, sites[0].length, context.seed), sites[0].plan(1)
        for site in sites:
            site.contribute(1, sent[site.name])
        finish(sites, 1, plan)
    store, anchor = service.consortium.coordinator, service.consortium.anchor
    right, _ = _audit(store, anchor)
    cases = []
    for name, change in _changed_tables(store):
        copy = context.folder / f"copy-{name}"
        shutil.copytree(store, copy)
        what = change(copy)
        unseen = _runs(copy)
        still, wrong = _audit(copy, anchor)
        cases.append(
            Case(
                f"{what}, in the coordinator's store",
                control="the coordinator reports its studies as before"
                if unseen
                else "the coordinator stops",
                control_worked=unseen,
                defended="not noticed" if still else f"audit verify: {wrong[:220]}",
                held=not still,
            )
        )
    return cases, right


# A coordinator that alters the sum


def _altered(context: Context) -> Case:
    with Service(context.folder / "altered", NAMES, (f"altered-sum={SHIFT}",)) as service:
        service.start()
        trust = service.study(study_file("quorum", ""))
        sites = begin([service.member(name) for name in NAMES], service.address, trust)
        for site in sites:
            site.join(1)
        sent, plan = vectors(NAMES, sites[0].length, context.seed), sites[0].plan(1)
        for site in sites:
            site.contribute(1, sent[site.name])
        for site in sites:
            site.acknowledge(1, plan)
        for site in sites:
            site.answer(1, plan)
        opened = sites[0].open(1, plan)
        found = [site.check_sum(1, plan) for site in sites]
    off = opened - np.sum([sent[name].astype(np.float64) for name in NAMES], axis=0)
    believed = abs(off[0] - SHIFT) <= trust.params.error_bound(len(NAMES))
    return Case(
        f"the coordinator adds {SHIFT:g} to a value of the encrypted sum",
        control=f"without collective verification every other check passes and the value is off by {off[0]:.6f}"
        if believed
        else "it does not open",
        control_worked=bool(believed),
        defended=f"{sum(bool(one) for one in found)} of {len(NAMES)} sites name chunk {found[0]} of round 1",
        held=all(one == [0] for one in found),
    )


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
    context.note("the store, changed")
    cases, right = _transcript(context)
    context.note("an altered sum")
    cases.append(_altered(context))
    context.note("a forged key")
    cases += [_forged(name) for name in (("q32",) if context.fast else ("q32", "q16"))]
    context.note("a framed member")
    cases += _framed(context.seed)
    defended: dict[str, Figure] = {"an untouched store is right": right}
    result = Result.of_cases(
        cases,
        f"{sum(case.held for case in cases)} of {len(cases)} forgeries were caught: the audit names the record or "
        "chunk that was changed, the sites name the chunk of an altered sum, keys forged by lattice reduction open "
        "nothing, and a member framed by a dealer is not blamed.",
        defended=defended,
        notes=(
            "A site's model report that is removed from the store altogether is not missed: a site need not report. "
            "Each site keeps its own.",
            "With whole agents: tests/attacks/test_attack_altered_sum.py, test_attack_framed_member.py.",
        ),
    )
    # An audit that finds fault with everything would pass.
    return result if right else Result.of_cases([], "the audit finds fault with an untouched store")


ROW = Row(
    id="T23",
    title="tampered transcript, forged sum, framed member",
    adversary="A coordinator or whoever writes to its disk; the last member to answer; a dealer.",
    holds="The store; all ciphertexts; for the forged key every answer and so the key of the sum.",
    source="Our own review; LLL: Lenstra, Lenstra, Lovasz 1982; transcripts: RFC 9162.",
    metric="forgeries that are believed, and who is blamed",
    passes="none is believed, the place is named, and nobody is blamed wrongly; an untouched store is right",
    seeds=(23,),
    fast_seconds=45,
    full_seconds=60,
    run=run,
)
