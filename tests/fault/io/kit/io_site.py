"""Run under ``faults.c``: every step of a site's round, with each of its writes failing in turn.

Usage: FOLDER STRIDE STEP... Every STRIDE-th call is made to fail. Its last line is JSON: for each step and fault, how
many calls there are. A failed check ends it with a traceback that names the call.
"""

from __future__ import annotations

import copy
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from io_injector import KINDS, Faults, load  # noqa: E402

played = load("played_site", HERE.parents[2] / "unit" / "site_agent" / "conftest.py")

from cipherward.crypto.pki.consortium_folder import ConsortiumFolder, create_consortium  # noqa: E402
from cipherward.site_agent import fsck  # noqa: E402
from cipherward.site_agent.ledger.chain import Kind  # noqa: E402
from cipherward.site_agent.state.faults import explained_database  # noqa: E402


class Trial:
    """The world of the unit tests, put back to one moment again and again."""

    def __init__(self, folder: Path) -> None:
        create_consortium(folder / "consortium", "heart", "correct horse battery", time.time())
        consortium = ConsortiumFolder(folder / "consortium")
        root = consortium.unlock("correct horse battery")
        self.world = played.World(folder, consortium, root)
        self.alpha, self.saved = folder / "alpha", folder / "saved"
        self.agent: Any = None

    def save(self) -> None:
        """This moment is the one to come back to."""
        self.world.site.engine.dispose()
        shutil.copytree(self.alpha, self.saved)
        self.coordinator = self.world.coordinator

    def reset(self, *, running: bool) -> None:
        self.world.site.engine.dispose()
        shutil.rmtree(self.alpha)
        shutil.copytree(self.saved, self.alpha)
        self.world.coordinator = copy.deepcopy(self.coordinator)
        if running:
            self.restart()

    def restart(self) -> None:
        """As the daemon starts: what it knows is what is on disk."""
        self.world.site.engine.dispose()
        self.world.site = self.world.open_site()
        self.world.site.ledger.verify_chain()
        self.agent = self.world.attach()

    def problems(self) -> list[str]:
        found: list[str] = fsck.check(self.alpha).problems
        return found


def start(trial: Trial) -> None:
    trial.restart()


def admitted(trial: Trial) -> None:
    played.admit(trial.world.site, trial.world.coordinator, played.STUDY, trial.world.trust.digest)


def joined(trial: Trial) -> None:
    trial.agent.participation.train_and_join(1)


def committed(trial: Trial) -> None:
    plan = trial.world.coordinator.records[1, played.cp.RECORD_KIND_PLAN]
    trial.agent.upload.upload_and_commit(1, played.record_digest(played.Label.PLAN_RECORD, plan))


def released(trial: Trial) -> None:
    trial.agent.release.catch_up(1, 1)


def before_start(trial: Trial) -> None:
    trial.world.site.engine.dispose()
    for path in trial.alpha.glob("state.db*"):
        path.unlink()
    (trial.alpha / "patient.key").unlink()


def before_admitted(trial: Trial) -> None:
    pass


def before_joined(trial: Trial) -> None:
    trial.agent = trial.world.admit()
    trial.world.open_round(trial.agent, 1)


def before_committed(trial: Trial) -> None:
    before_joined(trial)
    joined(trial)
    trial.world.plan(trial.agent, 1)


def before_released(trial: Trial) -> None:
    trial.agent = trial.world.admit()
    trial.world.to_close(trial.agent, 1)


def outcome(trial: Trial, step: str) -> dict[str, Any]:
    """What must come out of the step, whatever failed on the way."""
    site = trial.world.site
    if step == "start":
        return {"head": site.ledger.head().sequence}
    study = trial.agent.study
    row, entry = study.row(), study.journal.entry(1)
    return {
        "state": row.state,
        "model": row.model_digest,
        "transcript": row.transcript,
        "reserved": site.ledger.count(Kind.RESERVE, "heart"),
        "lost": site.ledger.count(Kind.LOST, "heart"),
        "skipped": entry.skipped,
        "update": entry.update_digest,
        "posted": (len(trial.world.coordinator.joins) > 0, len(trial.world.coordinator.commits) > 0),
    }


def enumerate_faults(trial: Trial, step: str, kind: str, stride: int) -> int:
    faults = Faults.of_this_process()
    run: Callable[[Trial], None] = globals()[step]

    def act() -> None:
        with explained_database("keep the study's state"):  # as the daemon's loops do
            run(trial)

    trial.reset(running=step != "start")
    act()
    expected, number = outcome(trial, step), 1
    while True:
        trial.reset(running=step != "start")
        with faults.failing(kind, number) as raised:
            act()
        if not faults.hits:
            return number
        called = f"{step}: {kind} at call {number} ({faults.last}): {raised}"
        try:
            if step != "start":
                assert trial.problems() == [], trial.problems()
            if kind == "ENOSPC" and raised:
                with faults.failing(kind, 1) as again:
                    act()
                assert again, "still full, and nothing said so"
                trial.restart()
            act()
            assert outcome(trial, step) == expected
            assert trial.problems() == [], trial.problems()
        except BaseException as error:
            raise AssertionError(called) from error
        number += stride


def main() -> None:
    folder, stride, *steps = sys.argv[1:]
    counted: dict[str, int] = {}
    for step in steps:
        trial = Trial(Path(folder) / step)
        globals()[f"before_{step}"](trial)
        trial.save()
        for kind in KINDS:
            counted[f"{step} {kind}"] = enumerate_faults(trial, step, kind, int(stride))
    print(json.dumps(counted))


if __name__ == "__main__":
    main()
