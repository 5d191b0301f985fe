"""T03: whose seized machine opens a peer's update? Real agents and a coordinator that deletes nothing; then every file
of every hospital is tried on what the coordinator holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from cipherward.coordinator.blobs.blobs import Blobs
from cipherward.coordinator.daemon.folder import blobs_url, database_url
from cipherward.coordinator.daemon.view import share_set, update_set
from cipherward.coordinator.store.chunks import ChunkSet
from cipherward.coordinator.store.database import Store
from cipherward.crypto.labels import Label, framed
from cipherward.crypto.quorum.sealed import Dealing
from cipherward.crypto.records import Plan, verify_plan
from cipherward.crypto.sealing import SealingKey
from cipherward.crypto.signing import record_digest
from cipherward.crypto.suites.base import KeyLifetime
from cipherward.crypto.suites.payload import Layout
from cipherward.crypto.suites.registry import suite
from cipherward.crypto.suites.site_side import one_time_key_side, study_key_side
from cipherward.errors import CipherwardError
from cipherward.evaluation.threats.kit.agents import Ended, run_study
from cipherward.evaluation.threats.row import Case, Context, Figure, Result, Row
from cipherward.proto.v1.coordinator_pb2 import RecordKind
from cipherward.proto.v1.round_pb2 import CloseRecord, Commit
from cipherward.site_agent.training.metrics import METRICS

ROUND = 1
LARGEST_SECRET = 2**17


@dataclass
class _Captured:
    """What the coordinator holds of one round."""

    trust: Any
    plan: Plan
    commits: dict[str, Commit]
    uploads: dict[str, list[bytes]]
    sealed: dict[str, list[bytes]]

    @property
    def length(self) -> int:
        return Layout(self.trust.manifest.parameter_count, METRICS).length

    def opened(self, values: np.ndarray[Any, Any]) -> bool:
        """A real update has its constant in the last place."""
        return bool(np.isfinite(values).all() and abs(values[-1] - 1) <= self.trust.params.error_bound(1))


def _captured(ended: Ended) -> _Captured:
    folder, trust = ended.consortium.coordinator, ended.trust
    store, blobs = Store(database_url(folder)), Blobs(blobs_url(folder))
    study = trust.manifest.study

    def content(part: ChunkSet) -> list[bytes]:
        return [blobs.read(place) for place in part.places()]

    try:
        with store.transaction() as t:
            kinds = (RecordKind.RECORD_KIND_ROUND, RecordKind.RECORD_KIND_PLAN, RecordKind.RECORD_KIND_CLOSE)
            opening, plan, close = (t.studies.record(study, ROUND, kind) for kind in kinds)
            if opening is None or plan is None or close is None:
                raise RuntimeError("the coordinator's store lacks a record of the round")
            record = CloseRecord.FromString(close.payload)
            commits = {one.site: Commit.FromString(one.commit.payload) for one in record.contributions}
            uploads = {
                site: content(t.chunks.load(update_set(study, ROUND, site, one.attempt)))
                for site, one in commits.items()
            }
            sealed = {
                site: content(t.chunks.load(share_set(study, ROUND, site, one.attempt)))
                for site, one in commits.items()
            }
    finally:
        store.close()
    digest = record_digest(Label.ROUND_RECORD, opening)
    return _Captured(trust, verify_plan(plan, trust, digest, ROUND), commits, uploads, sealed)


def _files(folder: Path) -> Iterator[bytes]:
    """Everything in a seized folder that is small enough for a key."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.stat().st_size <= LARGEST_SECRET:
            yield path.read_bytes()


def _opens_shared(found: _Captured, folder: Path) -> set[str]:
    """Hospitals whose update one seized folder opens, in the shared-key suite."""
    side, params, opened = study_key_side(found.trust.params.suite), found.trust.params, set()
    for content in _files(folder):
        with suppress(CipherwardError):
            key = side.load_key(params, content)
            with side.cipher(key, b"") as cipher, suite(params.suite).chunk_adder(params) as adder:
                for site, chunks in found.uploads.items():
                    alone = [adder.add([chunk], index, found.length) for index, chunk in enumerate(chunks)]
                    if found.opened(cipher.open_sum(alone, found.length, 1)):
                        opened.add(site)
    return opened


def _keys(folder: Path) -> list[SealingKey]:
    """Everything in a seized folder that can be a sealing key."""
    found = []
    for content in _files(folder):
        with suppress(CipherwardError, ValueError):
            found.append(SealingKey.from_bytes(content))
    return found


def _opens_quorum(found: _Captured, seized: Sequence[tuple[str, Path]]) -> tuple[set[str], int]:
    """Hospitals whose update these seized folders together open, and how many sealed shares did."""
    side, params, plan = one_time_key_side(found.trust.params.suite), found.trust.params, found.plan
    opened, shares_opened = set(), 0
    keys = {name: _keys(folder) for name, folder in seized}
    for dealer, commit in found.commits.items():
        named = f"{params.suite}:{params.name}"
        dealing = Dealing(
            found.trust.digest, plan.digest, named, plan.threshold, plan.members, dealer, commit.attempt,
            commit.ciphertext_root,
        )  # fmt: skip
        shares: dict[int, bytes] = {}
        for name, held in keys.items():
            place = plan.places[name]
            for key in held:
                with suppress(CipherwardError):
                    shares[place + 1] = dealing.open(place, key, found.sealed[dealer][place])
        shares_opened += len(shares)
        with suppress(CipherwardError):
            combined = next(side.combine(params, shares, plan.threshold, 1))
            context = framed(Label.PUBLIC_POLYNOMIAL, found.trust.digest, plan.digest)
            with side.cipher(combined.key, context, 1) as cipher:
                if found.opened(cipher.open_sum(found.uploads[dealer], found.length, 1)):
                    opened.add(dealer)
    return opened, shares_opened


def _peers(opened: set[str], own: Sequence[str]) -> set[str]:
    return opened - set(own)


def run(context: Context) -> Result:
    """Three studies: shared-key; quorum with round keys on disk (control); quorum as shipped."""
    context.note("a study in the shared-key suite, real agents")
    shared = run_study(context.folder / "shared", "shared-key", coordinator=("keeps-everything",))
    found = _captured(shared)
    readers = {
        name: len(_peers(_opens_shared(found, shared.consortium.site_folder(name)), [name]))
        for name in shared.names
    }
    all_read = all(count == len(shared.names) - 1 for count in readers.values())

    context.note("control: hospitals that keep round keys on disk")
    kept = run_study(
        context.folder / "kept", "quorum", coordinator=("keeps-everything",), sites=("round-keys-on-disk",)
    )
    found = _captured(kept)
    threshold = found.plan.threshold
    folders = [(name, kept.consortium.site_folder(name)) for name in found.plan.members]
    with_t, _ = _opens_quorum(found, folders[:threshold])
    below = [_opens_quorum(found, some)[0] for some in combinations(folders, threshold - 1)]

    context.note("as shipped")
    shipped = run_study(context.folder / "shipped", "quorum", coordinator=("keeps-everything",))
    found = _captured(shipped)
    if found.trust.key_lifetime is not KeyLifetime.ATTEMPT or not all(found.sealed.values()):
        raise RuntimeError("the captured round has no sealed shares")
    folders = [(name, shipped.consortium.site_folder(name)) for name in found.plan.members]
    tried = sum(len(_keys(folder)) for _, folder in folders)
    everybody, shares = _opens_quorum(found, folders)
    cases = [
        Case(
            "quorum: all hospitals' folders and the coordinator's, after the round",
            control=f"with round keys on disk {threshold} folders open {len(with_t)} of {len(folders)} updates",
            control_worked=len(with_t) == len(folders),
            defended=f"{tried} keys tried; {shares} sealed shares and {len(everybody)} updates open",
            held=not everybody and not shares,
        ),
        Case(
            f"quorum: {threshold - 1} folders that even have the round keys, and the coordinator's",
            control=f"{threshold} folders open {len(with_t)} of {len(folders)} updates",
            control_worked=len(with_t) == len(folders),
            defended=f"{sum(len(one) for one in below)} updates open in {len(below)} choices",
            held=not any(below),
        ),
        Case(
            "shared-key: one hospital's folder and the coordinator's",
            control=f"every hospital's folder opens {min(readers.values())} peers' updates",
            control_worked=all_read,
            defended="OPEN, as stated for this suite: every hospital holds the key",
            held=True,
        ),
    ]
    control: dict[str, Figure] = {
        "shared-key: peers' updates that each hospital's folder opens": min(readers.values()),
        f"quorum, round keys on disk: updates that {threshold} folders open": len(with_t),
    }
    defended: dict[str, Figure] = {
        "quorum: updates that all folders together open": len(everybody),
        "quorum: sealed shares that open": shares,
        "quorum: keys tried": tried,
    }
    return Result.of_cases(
        cases,
        f"In the shared-key suite every one of {len(readers)} hospitals' folders, with the coordinator's, opens all "
        f"{len(readers) - 1} peers' updates. In the quorum suite all hospitals' folders together open "
        f"{len(everybody)}: no key of a round is ever on disk.",
        control=control,
        defended=defended,
        notes=(
            "A hospital's own latest update lies in its folder in clear while its round is in progress. t hospitals "
            "that conspire during a round, with their processes' memory, open any update of it: that is what t means.",
            "That every site holds the key is the shared-key suite's stated limit (SECURITY.md, the trust statement).",
        ),
    )


ROW = Row(
    id="T03",
    title="key custody: whose seized state opens a peer's update",
    adversary="Whoever seizes hospitals' machines after a round, with a coordinator that has deleted nothing.",
    holds="Every file in the seized folders, and all uploads and sealed shares.",
    source="Reproduced on NVIDIA FLARE 2.9.0 (2026): every hospital has the same secret key, in a file of mode 0644.",
    metric="peers' updates that open",
    passes="quorum: none, from all folders together; shared-key: every hospital's opens all, and that is stated",
    seeds=(3,),
    fast_seconds=75,
    full_seconds=75,
    run=run,
)
