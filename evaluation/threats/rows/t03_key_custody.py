"""T03: whose seized machine opens a peer's update? Real agents and a coordinator that deletes nothing; then every file
of every hospital is tried on what the coordinator holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
from cipherward.coordinator.store.studies import COMMIT
from cipherward.crypto.labels import Label, framed
from cipherward.crypto.quorum.sealed import Dealing
from cipherward.crypto.records import Plan, StudyTrust, verify_plan
from cipherward.crypto.sealing import SealingKey
from cipherward.crypto.signing import record_digest
from cipherward.crypto.suites.base import KeyLifetime
from cipherward.crypto.suites.payload import Layout
from cipherward.crypto.suites.registry import suite
from cipherward.crypto.suites.site_side import one_time_key_side, study_key_side
from cipherward.errors import CipherwardError
from cipherward.evaluation.threats.kit.attacked import Attacked
from cipherward.evaluation.threats.row import Case, Context, Figure, Result, Row
from cipherward.proto.v1.coordinator_pb2 import Phase, RecordKind, StudyState
from cipherward.proto.v1.round_pb2 import Commit
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


def _captured(folder: Path, trust: StudyTrust) -> _Captured:
    """From the coordinator's folder; the round need not be closed."""
    store, blobs = Store(database_url(folder)), Blobs(blobs_url(folder))
    study = trust.manifest.study

    def content(part: ChunkSet) -> list[bytes]:
        return [blobs.read(place) for place in part.places()]

    try:
        with store.transaction() as t:
            opening, plan = (
                t.studies.record(study, ROUND, kind)
                for kind in (RecordKind.RECORD_KIND_ROUND, RecordKind.RECORD_KIND_PLAN)
            )
            if opening is None or plan is None:
                raise RuntimeError("the coordinator's store lacks a record of the round")
            posted = t.studies.round_posts(study, ROUND, COMMIT)
            commits = {site: Commit.FromString(signed.payload) for site, signed in posted.items()}
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
    found = _Captured(trust, verify_plan(plan, trust, digest, ROUND), commits, uploads, sealed)
    if len(commits) < len(trust.sites) or not all(uploads.values()):
        raise RuntimeError(f"the coordinator lacks an upload of {study}")
    if trust.key_lifetime is KeyLifetime.ATTEMPT and not all(sealed.values()):
        raise RuntimeError(f"the coordinator lacks the sealed shares of {study}")
    return found


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


def _opens_quorum(found: _Captured, keys: Mapping[str, list[SealingKey]]) -> tuple[set[str], int]:
    """Hospitals whose update the keys of some seized folders together open, and how many sealed shares did."""
    side, params, plan = one_time_key_side(found.trust.params.suite), found.trust.params, found.plan
    opened, shares_opened = set(), 0
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


def _in_clear(attacked: Attacked, study: str) -> tuple[int, int]:
    """How many hospitals' own updates lie in clear in their own folders, and how many in anybody else's."""
    folders = {name: attacked.consortium.site_folder(name) for name in attacked.names}
    folders["coordinator"] = attacked.consortium.coordinator
    held = {
        name: [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
        for name, folder in folders.items()
    }
    own = others = 0
    for name in attacked.names:
        update = np.load(folders[name] / f"sent-{study}.npy").astype("<f4").tobytes()
        here = [path for path in folders[name].rglob("update.f32") if path.read_bytes() == update]
        own += bool(here)
        others += sum(any(update in one for one in held[other]) for other in folders if other != name)
    return own, others


@dataclass(frozen=True)
class _Seized:
    """What the seized folders of one moment open."""

    moment: str
    shared: dict[str, int]
    """By hospital, the peers' updates that its folder opens."""
    kept: int
    """Updates that t folders open where round keys are on disk."""
    below: list[int]
    """Updates that each choice of t - 1 of these opens."""
    everybody: int
    shares: int
    tried: int
    threshold: int
    sites: int

    def cases(self) -> list[Case]:
        """Three."""
        control = f"with round keys on disk {self.threshold} folders open {self.kept} of {self.sites} updates"
        everything = all(count == self.sites - 1 for count in self.shared.values())
        one = f"every hospital's folder opens {min(self.shared.values())} of {self.sites - 1} peers' updates"
        return [
            Case(
                f"quorum, {self.moment}: all hospitals' folders and the coordinator's",
                control,
                self.kept == self.sites,
                f"{self.tried} keys tried; {self.shares} sealed shares and {self.everybody} updates open",
                not self.everybody and not self.shares and self.tried > 0,
            ),
            Case(
                f"quorum, {self.moment}: {self.threshold - 1} folders that have the round keys, and the coordinator's",
                control,
                self.kept == self.sites,
                f"{sum(self.below)} updates open in {len(self.below)} choices",
                not any(self.below),
            ),
            Case(
                f"shared-key, {self.moment}: one hospital's folder and the coordinator's",
                one,
                everything,
                f"OPEN, as documented for this suite: {one}"
                if everything
                else f"{one}: the documentation that calls it open is wrong",
                everything,
            ),
        ]


def _seize(attacked: Attacked, trusts: Mapping[str, StudyTrust], kind: str, moment: str) -> _Seized:
    def captured(study: str) -> _Captured:
        return _captured(attacked.consortium.coordinator, trusts[study])

    folders = {name: attacked.consortium.site_folder(name) for name in attacked.names}
    shared = captured(f"shared-{kind}")
    readers = {name: len(_opens_shared(shared, folder) - {name}) for name, folder in folders.items()}
    keys = {name: _keys(folder) for name, folder in folders.items()}
    kept, shipped = captured(f"kept-quorum-{kind}"), captured(f"quorum-{kind}")
    threshold, names = kept.plan.threshold, list(attacked.names)
    opened, _ = _opens_quorum(kept, {name: keys[name] for name in names[:threshold]})
    below = [
        len(_opens_quorum(kept, {name: keys[name] for name in some})[0])
        for some in combinations(names, threshold - 1)
    ]
    everybody, shares = _opens_quorum(shipped, keys)
    return _Seized(
        moment,
        readers,
        len(opened),
        below,
        len(everybody),
        shares,
        sum(map(len, keys.values())),
        threshold,
        len(names),
    )


STUDIES = {"shared": "shared-key", "quorum": "quorum", "kept-quorum": "quorum"}
MOMENTS = {"after": "after the round", "stalled": "killed between commit and answer"}


def run(context: Context) -> Result:
    """Six studies of the same agents: two suites and a control, each to its end and stopped in the middle of a round,
    where every agent is killed. Then every file of every hospital is tried on what the coordinator holds."""
    changes = ("keeps-everything", "stalled-sums")
    with Attacked(context.folder / "seized", changes, ("round-keys-on-disk", "keeps-vectors")) as attacked:
        attacked.start()
        trusts = {
            f"{name}-{kind}": attacked.study(f"{name}-{kind}", suite)
            for kind in MOMENTS
            for name, suite in STUDIES.items()
        }
        for study in trusts:
            context.note(f"real agents: {study}")
            attacked.wait(lambda study=study: _there(attacked, study), f"the moment of {study}")  # type: ignore[misc]
        for name in attacked.names:
            attacked.processes.kill(f"site-{name}")
        alive = [attacked.status(study).state for study in trusts if study.endswith("stalled")]
    if any(state != StudyState.STUDY_STATE_RUNNING for state in alive):
        raise RuntimeError("a round that was to be cut off had ended before")
    found = {}
    for kind, moment in MOMENTS.items():
        context.note(f"every file tried: {moment}")
        found[kind] = _seize(attacked, trusts, kind, moment)
    own, others = zip(*(_in_clear(attacked, f"{name}-stalled") for name in ("shared", "quorum")), strict=True)
    sites = len(attacked.names)
    clear = Case(
        "a round cut off: updates in clear on disk",
        control=f"{min(own)} of {sites} hospitals' own updates are found in their own folders",
        control_worked=min(own) == sites,
        defended=f"{sum(others)} are found in a peer's folder or the coordinator's",
        held=not sum(others),
    )
    after, stalled = found["after"], found["stalled"]
    control: dict[str, Figure] = {
        "shared-key: peers' updates that each hospital's folder opens": min(after.shared.values()),
        f"quorum, round keys on disk: updates that {after.threshold} folders open": after.kept,
    }
    defended: dict[str, Figure] = {
        "quorum: updates that all folders together open": after.everybody,
        "the same, killed between commit and answer": stalled.everybody,
        "quorum: sealed shares that open": after.shares + stalled.shares,
        "quorum: keys tried": after.tried + stalled.tried,
    }
    return Result.of_cases(
        [*after.cases(), *stalled.cases(), clear],
        f"In the shared-key suite every one of {sites} hospitals' folders, with the coordinator's, opens all "
        f"{sites - 1} peers' updates. In the quorum suite all hospitals' folders together open "
        f"{after.everybody + stalled.everybody}, seized after a round or in the middle of one: no key of a round is "
        "ever on disk.",
        control=control,
        defended=defended,
        notes=(
            "A hospital's own latest update, with its noise, lies in its folder in clear while its round is in "
            "progress. t hospitals that conspire during a round, with their processes' memory, open any update of it: "
            "that is what t means.",
            "That every site holds the key is the shared-key suite's stated limit (SECURITY.md, the trust statement): "
            "the row fails when it no longer does, so that the documentation is corrected.",
        ),
    )


def _there(attacked: Attacked, study: str) -> bool:
    """Whether the study has got as far as it shall."""
    status = attacked.status(study)
    if study.endswith("stalled"):
        return status.phase == Phase.PHASE_SUM
    return status.state == StudyState.STUDY_STATE_FINISHED


ROW = Row(
    id="T03",
    title="key custody: whose seized state opens a peer's update",
    adversary="Whoever seizes hospitals' machines after a round or in the middle of one, with a coordinator that has "
    "deleted nothing.",
    holds="Every file in the seized folders, and all uploads and sealed shares.",
    source="Reproduced on NVIDIA FLARE 2.9.0 (2026): every hospital has the same secret key, in a file of mode 0644.",
    metric="peers' updates that open",
    passes="quorum: none, from all folders together; shared-key: every hospital's opens all, and that is stated",
    seeds=(3,),
    fast_seconds=55,
    full_seconds=75,
    run=run,
)
