"""The preloaded trainer, as the agent uses it: real server processes, real sockets, real kills."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cipherward.errors import (
    EnvironmentProblem,
    FormatError,
    UnavailableError,
    UsageError,
    VerificationError,
)
from cipherward.site_agent.ledger.accountant import ServedAccountant
from cipherward.site_agent.ledger.accounting import SampledGaussian, epsilon
from cipherward.site_agent.tasks.base import Split
from cipherward.site_agent.tasks.heart_disease.data import rows
from cipherward.site_agent.tasks.heart_disease.defaults import HEART_STUDY
from cipherward.site_agent.tasks.registry import task_digest
from cipherward.site_agent.training import protocol
from cipherward.site_agent.training.client import Cancellation, TaskRef, Trainer, cancellable

HEART = TaskRef("heart-disease", task_digest("heart-disease"))
SOURCE = "builtin:switzerland"
QUICK = HEART_STUDY.private(2.5)
ENDLESS = replace(QUICK, steps=1_000_000)
START = np.zeros(23, np.float32)
SLOW_TASK = """
import json
import time
from cipherward.site_agent.tasks.heart_disease import HeartDisease

class Slow(HeartDisease):
    name = "odd"
    def load(self, source, split):
        if source == "raise":
            raise KeyError("patient 4711")
        if source == "quote":
            json.loads("{'cholesterol': 239")
        if source == "die":
            import os
            os.kill(os.getpid(), 9)
        if source == "memory":
            raise MemoryError
        return super().load(source, split)
"""


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an installed task that misbehaves on demand."""
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "odd_task.py").write_text(SLOW_TASK)
    info = folder / "odd_task-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-task\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[cipherward.tasks]\nodd = odd_task:Slow\n")
    return folder


@pytest.fixture(scope="module")
def trainer(plugins: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(plugins))
        folder = tmp_path_factory.mktemp("trainer")
        trainer = Trainer(folder / "run" / "trainer.sock", jobs=2, log=folder / "trainer.log")
        trainer.start()
        yield trainer
        trainer.close()


@pytest.fixture
def odd(plugins: Path, monkeypatch: pytest.MonkeyPatch) -> TaskRef:
    monkeypatch.syspath_prepend(str(plugins))
    return TaskRef("odd", task_digest("odd"))


def children(pid: int | None) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until(condition: object, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def train(
    trainer: Trainer, task: TaskRef = HEART, cancellation: Cancellation | None = None
) -> NDArray[np.float32]:
    return trainer.train(
        task, SOURCE, ENDLESS, START, timeout=60, cancellation=cancellation
    ).update  # fmt: skip


def test_the_jobs(trainer: Trainer) -> None:
    start = trainer.initial_weights(HEART, 7)
    assert (start.shape, start.dtype) == ((23,), np.float32)
    description = trainer.describe(HEART, SOURCE)
    assert description.parameters == 23
    assert description.patients == tuple(sorted(row.patient for row in rows(SOURCE, Split.TRAIN)))
    assert description.records == len(description.patients)
    assert description.patients[0] not in repr(description)
    outcome = trainer.train(HEART, SOURCE, QUICK, start, timeout=60)
    assert (outcome.update.shape, outcome.update.dtype) == ((23,), np.float32)
    assert outcome.metrics.shape == (3,)
    assert outcome.dropped == 0
    assert outcome.patients == description.patients
    assert repr(outcome) == f"TrainOutcome(seconds={outcome.seconds!r}, dropped=0)"
    assert 0 < outcome.seconds < 60
    trained = trainer.evaluate(HEART, SOURCE, Split.TEST, start + outcome.update)
    assert trained.patients == len(rows(SOURCE, Split.TEST))
    assert trained.auc is not None


def test_two_jobs_never_share_noise(trainer: Trainer) -> None:
    """Both children are copies of one process: their randomness must not be."""
    one, two = (trainer.train(HEART, SOURCE, QUICK, START, timeout=60) for _ in range(2))
    assert not np.intersect1d(one.update, two.update).size
    assert not np.intersect1d(one.metrics, two.metrics).size


def test_the_server_has_one_thread_and_ignores_interrupts(trainer: Trainer) -> None:
    assert trainer.pid is not None
    assert [entry.name for entry in Path(f"/proc/{trainer.pid}/task").iterdir()] == [str(trainer.pid)]
    os.kill(trainer.pid, signal.SIGINT)
    assert trainer.describe(HEART, SOURCE).records > 0
    limits = Path(f"/proc/{trainer.pid}/limits").read_text()
    assert [line.split()[4:6] for line in limits.splitlines() if "core file" in line] == [["0", "0"]]


def test_only_the_owner_can_reach_it(trainer: Trainer) -> None:
    folder = trainer._path.parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_other_code_is_refused_before_it_runs(trainer: Trainer) -> None:
    with pytest.raises(VerificationError, match="is not what the study names"):
        trainer.train(TaskRef("heart-disease", bytes(32)), SOURCE, QUICK, START, timeout=60)


def test_errors_keep_their_code_and_parts(trainer: Trainer) -> None:
    with pytest.raises(UsageError, match=r"'builtin:boston' is not a source.*Use builtin:"):
        trainer.describe(HEART, "builtin:boston")
    with pytest.raises(EnvironmentProblem, match="no such file"):
        trainer.describe(HEART, "/nowhere.csv")
    with pytest.raises(FormatError, match="23 parameters"):
        trainer.train(HEART, SOURCE, QUICK, np.zeros(5, np.float32), timeout=60)
    with pytest.raises(FormatError, match="NaN"):
        trainer.train(HEART, SOURCE, QUICK, START * np.float32("nan"), timeout=60)
    with pytest.raises(UsageError, match="no task 'nope'"):
        trainer.describe(TaskRef("nope", bytes(32)), SOURCE)


def test_a_task_that_raises_is_reported(trainer: Trainer, odd: TaskRef) -> None:
    line = SLOW_TASK.splitlines().index('            raise KeyError("patient 4711")') + 1
    with pytest.raises(
        UsageError, match=rf"'odd' failed in 'describe'.*KeyError at .*/odd_task\.py:{line}\."
    ) as raised:
        trainer.describe(odd, "raise")
    # What a task says may quote a patient: it goes neither to the agent nor to a log.
    log = (trainer._path.parent.parent / "trainer.log").read_text()
    assert "4711" not in str(raised.value) + repr(raised.value.__context__) + log
    with pytest.raises(EnvironmentProblem, match="out of memory"):
        trainer.describe(odd, "memory")


def test_a_library_that_quotes_a_patients_value_is_reported_by_the_tasks_line(
    trainer: Trainer, odd: TaskRef
) -> None:
    line = SLOW_TASK.splitlines().index("            json.loads(\"{'cholesterol': 239\")") + 1
    with pytest.raises(UsageError, match=rf"JSONDecodeError at .*/odd_task\.py:{line}\.") as raised:
        trainer.describe(odd, "quote")
    assert "239" not in str(raised.value)
    assert "cholesterol" not in (trainer._path.parent.parent / "trainer.log").read_text()


def test_a_job_that_dies_is_reported_and_the_server_lives(trainer: Trainer, odd: TaskRef) -> None:
    server = trainer.pid
    with pytest.raises(UnavailableError, match="ended without an answer"):
        trainer.describe(odd, "die")
    assert "SIGKILL" in (trainer._path.parent.parent / "trainer.log").read_text()
    assert trainer.describe(odd, SOURCE).records > 0
    assert trainer.pid == server


def test_a_timeout_kills_the_job(trainer: Trainer) -> None:
    with pytest.raises(UnavailableError, match=r"took longer than 0\.5 s"):
        trainer.train(HEART, SOURCE, ENDLESS, START, timeout=0.5)
    wait_until(lambda: not children(trainer.pid))


async def test_cancelling_kills_the_job(trainer: Trainer) -> None:
    call = asyncio.create_task(cancellable(lambda cancellation: train(trainer, HEART, cancellation)))
    await asyncio.to_thread(wait_until, lambda: children(trainer.pid))
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.to_thread(wait_until, lambda: not children(trainer.pid))


def test_a_call_cancelled_beforehand_does_not_start(trainer: Trainer) -> None:
    cancellation = Cancellation()
    cancellation.cancel()
    with pytest.raises(UnavailableError, match="cancelled"):
        train(trainer, HEART, cancellation)
    cancellation.cancel()


def test_jobs_beyond_the_limit_wait_their_turn(trainer: Trainer) -> None:
    cancellations = [Cancellation() for _ in range(3)]

    def run(cancellation: Cancellation) -> None:
        with pytest.raises(UnavailableError):
            train(trainer, HEART, cancellation)

    threads = [threading.Thread(target=run, args=(cancellation,)) for cancellation in cancellations]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: len(children(trainer.pid)) == 2)
        time.sleep(0.3)
        assert len(children(trainer.pid)) == 2
        with pytest.raises(UnavailableError, match="took longer"):
            trainer.describe(HEART, SOURCE, timeout=0.2)
    finally:
        for cancellation in cancellations:
            cancellation.cancel()
        for thread in threads:
            thread.join()
    assert trainer.describe(HEART, SOURCE).records > 0


def test_a_dead_server_is_started_again(trainer: Trainer) -> None:
    first = trainer.pid
    assert first is not None

    def run() -> None:
        with pytest.raises(UnavailableError, match="ended without an answer"):
            train(trainer)

    running = threading.Thread(target=run)
    running.start()
    wait_until(lambda: children(first))
    (job,) = children(first)
    os.kill(first, signal.SIGKILL)
    running.join(10)
    assert not running.is_alive()
    wait_until(lambda: gone(job))  # no orphan trains on
    assert trainer.describe(HEART, SOURCE).records > 0
    assert trainer.pid != first


def test_the_server_ends_with_its_agent(tmp_path: Path) -> None:
    """However the agent ends: here it is killed, having started the server from a thread long gone."""
    code = f"""
import threading, time
from pathlib import Path
from cipherward.site_agent.training.client import Trainer
trainer = Trainer(Path({str(tmp_path / "run" / "t.sock")!r}))
thread = threading.Thread(target=trainer.start)
thread.start(); thread.join()
print(trainer.pid, flush=True)
time.sleep(600)
"""
    agent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert agent.stdout is not None
    with agent.stdout:
        server = int(agent.stdout.readline())
        assert not gone(server)
        agent.kill()
        agent.wait()
    wait_until(lambda: gone(server))


def test_agents_share_a_server(trainer: Trainer) -> None:
    other = Trainer(trainer._path, spawn=False)
    assert other.describe(HEART, SOURCE) == trainer.describe(HEART, SOURCE)
    other.close()
    assert trainer.describe(HEART, SOURCE).records > 0


def test_the_server_keeps_an_accountant_beside_its_jobs(trainer: Trainer) -> None:
    """It takes no job's place, and is there again with the server."""
    cost = [SampledGaussian(2.0, 0.25, 10)]
    accountant = ServedAccountant(trainer.connect_accountant)
    assert accountant.epsilon(cost, 1e-5) == epsilon(cost, 1e-5)
    assert len(children(trainer.pid)) == 1
    cancellations = [Cancellation() for _ in range(2)]

    def run(cancellation: Cancellation) -> None:
        with pytest.raises(UnavailableError):
            train(trainer, HEART, cancellation)

    threads = [threading.Thread(target=run, args=(cancellation,)) for cancellation in cancellations]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(children(trainer.pid)) == 3)
    assert accountant.epsilon(cost * 2, 1e-5) == epsilon(cost * 2, 1e-5)
    for cancellation in cancellations:
        cancellation.cancel()
    for thread in threads:
        thread.join()
    first = trainer.pid
    assert first is not None
    wait_until(lambda: len(children(first)) == 1)  # a job that was cancelled is reaped a moment later
    (process,) = children(first)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: gone(process) and gone(first))
    assert accountant.epsilon(cost * 3, 1e-5) == epsilon(cost * 3, 1e-5)
    assert trainer.pid != first
    assert trainer.describe(HEART, SOURCE).records > 0


def test_a_missing_shared_server_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"no trainer answers.*Start it: python -m"):
        Trainer(tmp_path / "t.sock", spawn=False).start()


def test_a_folder_open_to_others_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o755)
    log = tmp_path / "log"
    trainer = Trainer(folder / "t.sock", log=log)
    with pytest.raises(EnvironmentProblem, match="ended with status 3"):
        trainer.start()
    trainer.close()
    assert f"chmod 700 {folder}" in log.read_text()


def test_paths_longer_than_a_socket_address(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100) / ("y" * 100)
    folder.mkdir(parents=True, mode=0o700)
    from cipherward.site_agent.training.server import listen

    with listen(folder / "t.sock"):
        Trainer(folder / "t.sock", spawn=False).start()
        with pytest.raises(EnvironmentProblem, match="already listening"):
            listen(folder / "t.sock")
    with listen(folder / "t.sock"):  # a stale socket of a server that is gone is in nobody's way
        pass


# Frames


@given(
    st.dictionaries(st.text(), st.integers() | st.text() | st.floats(allow_nan=False), max_size=4),
    st.lists(st.tuples(st.sampled_from([np.float32, np.float64]), st.integers(0, 200)), max_size=3),
)
def test_frames_round_trip(header: dict[str, object], shapes: list[tuple[type, int]]) -> None:
    left, right = socket.socketpair()
    arrays = {f"a{n}": np.arange(count, dtype=kind) for n, (kind, count) in enumerate(shapes)}
    with left, right:
        protocol.send(left, header, arrays)
        received, out = protocol.receive(right)
    assert {key: received[key] for key in header if key != "arrays"} == {
        key: value for key, value in header.items() if key != "arrays"
    }
    assert out.keys() == arrays.keys()
    for name, array in arrays.items():
        assert out[name].dtype == array.dtype
        assert np.array_equal(out[name], array)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{",
        b"\xff",
        b'{"job": "train"}',
        b'{"arrays": null}',
        b'{"arrays": [{"name": "a", "dtype": "object", "count": 1}]}',
        b'{"arrays": [{"name": "a", "dtype": "float32", "count": -1}]}',
        b'{"arrays": [{"name": "a", "dtype": "float32", "count": 999999999999}]}',
    ],
)
def test_malformed_frames_are_refused(header: bytes) -> None:
    left, right = socket.socketpair()
    with left, right:
        left.sendall(len(header).to_bytes(4, "big") + header)
        with pytest.raises(FormatError):
            protocol.receive(right, time.monotonic() + 5)


def test_frames_that_end_early_stall_or_are_too_long() -> None:
    left, right = socket.socketpair()
    with right:
        with left:
            left.sendall(b"\xff\xff\xff\xff")
            with pytest.raises(FormatError, match="the limit is"):
                protocol.receive(right)
            left.sendall(b"\x00\x00")
            with pytest.raises(TimeoutError):
                protocol.receive(right, time.monotonic() + 0.05)
            left.sendall(b"\x00\x00")
        right.settimeout(None)
        with pytest.raises(EOFError):
            protocol.receive(right)


def test_a_malformed_request_is_answered(trainer: Trainer) -> None:
    with trainer._connect() as connection:
        protocol.send(connection, {"job": "shell", "task": "heart-disease", "digest": "00"})
        reply, _ = protocol.receive(connection, time.monotonic() + 30)
    assert reply["error"]["code"] == "CW-310"
