"""kill -9 while a study runs: it finishes, every site has the same bits, and nothing is counted twice."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from cipherward.evaluation.demo.consortium import DemoConsortium, DemoSite
from cipherward.evaluation.demo.processes import Processes
from cipherward.evaluation.demo.run import hospital_parts
from cipherward.evaluation.demo.studies import HOSPITALS, TASK, demo_study, study_file
from cipherward.evaluation.demo.study import RunningStudy
from cipherward.proto.v1.coordinator_pb2 import Phase, StudyStatus
from cipherward.site_agent.training.client import Trainer

ROUNDS = 3
COMMAND = "cipherward.cli.app"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Run:
    study: RunningStudy
    processes: Processes
    consortium: DemoConsortium
    trainer_socket: Path
    listen: str


@contextmanager
def started(folder: Path) -> Iterator[Run]:
    consortium = DemoConsortium(folder)
    for name, source in hospital_parts(4).items():
        consortium.add_site(DemoSite(name, source, 3.0, 1e-4), TASK, "shared-key")
    trainer = Trainer(folder / "trainer" / "socket", log=folder / "trainer.log")
    study = study_file(demo_study("fedavg", ROUNDS, 3.0), "shared-key", hospital_parts(4), 3.0)
    with Processes(folder / "logs", COMMAND) as processes:
        try:
            trainer.start()
            consortium.sign_study(study, 0, trainer)
            running = RunningStudy(consortium, processes, HOSPITALS, COMMAND)
            listen = f"127.0.0.1:{free_port()}"
            running.start_coordinator(listen)
            for name in HOSPITALS:
                running.start_site(name, folder / "trainer" / "socket")
            running.start_study()
            yield Run(running, processes, consortium, folder / "trainer" / "socket", listen)
        finally:
            trainer.close()


def check_finished(run: Run, status: StudyStatus, *, all_rounds: bool) -> None:
    run.study.wait_for_sites(60)
    states = [run.study.site_status(name) for name in HOSPITALS]
    studies = [next(entry for entry in state["studies"] if entry["study"] == "heart") for state in states]
    assert {entry["state"] for entry in studies} == {"finished"}
    digests = {entry["model_digest"] for entry in studies}
    assert len(digests) == 1, "the sites' models differ"
    history = list(status.history)
    assert [entry.round for entry in history] == list(range(1, ROUNDS + 1))
    for entry in history:
        assert len(set(entry.contributors)) == len(entry.contributors)
        assert len(entry.contributors) >= 3
    if all_rounds:
        assert not any(entry.aborted for entry in history)
    # Every round that a site began is in its ledger once, and only once.
    for state in states:
        data = state["data_sets"][0]
        assert data["reservations"] <= ROUNDS
        assert data["epsilon"] <= 3.0


def when(status: StudyStatus, round_number: int, phase: Phase.ValueType) -> bool:
    return status.round == round_number and status.phase == phase


@pytest.mark.slow
@pytest.mark.parametrize("phase", [Phase.PHASE_OPEN, Phase.PHASE_RELEASE])
def test_coordinator_killed(tmp_path: Path, phase: Phase.ValueType) -> None:
    killed = []

    with started(tmp_path) as run:

        def kill_once(status: StudyStatus) -> None:
            if not killed and when(status, 2, phase):
                killed.append(time.monotonic())
                run.processes.kill("coordinator")
                run.study.start_coordinator(run.listen)

        status = run.study.watch(kill_once, 150, every=0.11)
        if not killed:
            pytest.skip("the phase passed between two looks")
        check_finished(run, status, all_rounds=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("site", "step"),
    [("hungary", "committed"), ("cleveland", "joined")],
)
def test_site_killed(tmp_path: Path, site: str, step: str) -> None:
    """``cleveland`` is the maker of the shared key."""
    killed = []

    def reached(status: StudyStatus) -> bool:
        return any(entry.name == site and entry.step == step for entry in status.sites)

    with started(tmp_path) as run:

        def kill_once(status: StudyStatus) -> None:
            if not killed and status.round == 2 and reached(status):
                killed.append(time.monotonic())
                run.processes.kill(f"site-{site}")
                run.study.start_site(site, run.trainer_socket)

        status = run.study.watch(kill_once, 200, every=0.11)
        if not killed:
            pytest.skip("the step passed between two looks")
        check_finished(run, status, all_rounds=True)
