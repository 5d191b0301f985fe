"""The accountant's own process: the same answers as a computation from scratch, or none; never a wrong one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from cipherward.clock import ManualClock
from cipherward.database import make_engine
from cipherward.errors import BudgetError, FormatError, UnavailableError, UsageError
from cipherward.ids import Digest
from cipherward.site_agent.ledger import accounting
from cipherward.site_agent.ledger.accountant import LocalAccountant, ServedAccountant
from cipherward.site_agent.ledger.accountant_service import accounting_socket, serve
from cipherward.site_agent.ledger.accounting import Gaussian, PrivacyEvent, SampledGaussian
from cipherward.site_agent.ledger.ledger import Ledger
from cipherward.site_agent.ledger.patients import PatientKey
from cipherward.site_agent.state.metadata import metadata
from cipherward.site_agent.training.client import Trainer

ROUND = (SampledGaussian(2.0, 0.1, 10), Gaussian(20.0))
DELTA = 1e-5
# A trainer server that loads no torch: what is tested here is the process beside its jobs.
SERVER = """
import sys
from pathlib import Path
from cipherward.site_agent.ledger import accounting
from cipherward.site_agent.ledger.accountant_service import accounting_socket
from cipherward.site_agent.training import server
path, server.IDLE_SECONDS = Path(sys.argv[1]), float(sys.argv[2])
accounting.load()
accounts, listener = server.listen(accounting_socket(path)), server.listen(path)
print("ready", flush=True)
server.TrainerServer(listener, accounts, 2, 0).serve()
"""


class Server:
    """Ends with its standard input."""

    def __init__(self, path: Path, idle_seconds: float) -> None:
        command = [sys.executable, "-c", SERVER, str(path), str(idle_seconds)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None and self.process.stdout.readline() == "ready\n"
        self.trainer = Trainer(path, spawn=False)

    def accountant(self) -> int | None:
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(children[0]) if children else None

    def close(self) -> str:
        return self.process.communicate(timeout=10)[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("trainer") / "socket", 60.0)
    yield server
    server.close()


@pytest.fixture
def accountant(server: Server) -> ServedAccountant:
    return ServedAccountant(server.trainer.connect_accountant)


def wait_until(condition: object, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def from_scratch(events: list[PrivacyEvent], delta: float) -> float:
    """Without anything remembered of earlier computations."""
    for remembered in (accounting._epsilon, accounting._one_step, accounting._one_step_rdp):
        remembered.cache_clear()
    return accounting.epsilon(events, delta)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = make_engine(f"sqlite:///{tmp_path}/site.db")
    metadata.create_all(engine)
    yield engine
    engine.dispose()


def open_ledger(engine: Engine, accountant: ServedAccountant) -> Ledger:
    ledger = Ledger(engine, PatientKey(bytes(32)), accountant=accountant, clock=ManualClock())
    ledger.register("ward", ["a", "b"])
    return ledger


def reserve(
    ledger: Ledger, number: int, cost: Sequence[PrivacyEvent] = ROUND, *, ceiling: float = 99.0
) -> None:
    manifest = Digest(bytes(32))
    ledger.reserve("ward", "s", number, cost, manifest=manifest, ceiling=ceiling, delta=DELTA)


# Answers


@settings(max_examples=10, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.builds(
                SampledGaussian,
                st.sampled_from([0.9, 2.0]),
                st.sampled_from([0.02, 0.25]),
                st.integers(1, 60),
            ),
            st.builds(Gaussian, st.sampled_from([0.0, 5.0, 20.0]), st.integers(1, 5)),
        ),
        max_size=4,
    ),
    st.sampled_from([1e-4, 1e-6]),
)
def test_what_it_remembers_changes_no_answer(
    server: Server, events: list[PrivacyEvent], delta: float
) -> None:
    fresh = ServedAccountant(server.trainer.connect_accountant)
    assert fresh.epsilon(events, delta) == from_scratch(events, delta)
    assert fresh.epsilon(events[::-1], delta) == fresh.epsilon(events, delta)


@given(
    st.lists(
        st.one_of(
            st.builds(SampledGaussian, st.floats(0.3, 50), st.floats(0.001, 0.999), st.integers(1, 10**6)),
            st.builds(Gaussian, st.floats(0.3, 500), st.integers(1, 10**6)),
        ),
        min_size=1,
        max_size=4,
    ).map(tuple)
)
@settings(max_examples=20, deadline=None)
def test_renyi_divergences_of_steps_add_up_as_the_library_composes_them(
    history: tuple[PrivacyEvent, ...],
) -> None:
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    library = RdpAccountant(accounting._ORDERS, dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    for event in history:
        gaussian = dp_accounting.GaussianDpEvent(event.noise_multiplier)
        if isinstance(event, SampledGaussian):
            library.compose(dp_accounting.PoissonSampledDpEvent(event.sampling_rate, gaussian), event.steps)
        else:
            library.compose(gaussian, event.count)
    assert accounting._rdp_epsilon(history, DELTA) == library.get_epsilon(DELTA)


def test_rounds_left_and_errors_are_as_in_this_process(accountant: ServedAccountant) -> None:
    here = LocalAccountant()
    assert accountant.rounds_left(ROUND, ROUND, 2.0, DELTA) == here.rounds_left(ROUND, ROUND, 2.0, DELTA)
    assert accountant.epsilon([], DELTA) == 0
    for asked in (accountant, here):
        with pytest.raises(UsageError):
            asked.epsilon(ROUND, 0.0)
        with pytest.raises(UsageError):
            asked.rounds_left(ROUND, [], 2.0, DELTA)


def test_an_answer_is_asked_for_once_and_a_step_computed_once(server: Server) -> None:
    connections = 0

    def connect() -> socket.socket:
        nonlocal connections
        connections += 1
        return server.trainer.connect_accountant()

    accountant = ServedAccountant(connect)
    first = accountant.epsilon(ROUND, DELTA)
    pid = server.accountant()
    assert accountant.epsilon(ROUND[::-1], DELTA) == first
    assert connections == 1
    assert accountant.epsilon(ROUND * 2, DELTA) > first
    assert connections == 2 and server.accountant() == pid


def test_agents_at_once_are_all_answered(server: Server) -> None:
    answers: dict[int, float] = {}

    def ask(rounds: int) -> None:
        own = ServedAccountant(server.trainer.connect_accountant)
        answers[rounds] = own.epsilon(ROUND * (rounds // 2 + 1), DELTA)

    threads = [threading.Thread(target=ask, args=(rounds,)) for rounds in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {rounds: accounting.epsilon(ROUND * (rounds // 2 + 1), DELTA) for rounds in range(8)}


def test_a_reservation_asks_one_question(server: Server, engine: Engine) -> None:
    connections = 0

    def connect() -> socket.socket:
        nonlocal connections
        connections += 1
        return server.trainer.connect_accountant()

    ledger = open_ledger(engine, ServedAccountant(connect))
    for number in range(1, 7):
        reserve(ledger, number)
        assert connections == number
    with pytest.raises(BudgetError, match="is spent"):
        reserve(ledger, 7, ceiling=0.5)
    assert connections <= 8  # a refusal says what is spent, besides


# Failures


def test_nothing_is_spent_when_it_dies_and_the_next_reservation_works(
    server: Server, engine: Engine, accountant: ServedAccountant
) -> None:
    ledger = open_ledger(engine, accountant)
    reserve(ledger, 1)
    before, pid = ledger.head(), server.accountant()
    assert pid is not None
    slow = [SampledGaussian(1 + step / 100, 0.1, 10) for step in range(30)]
    killer = threading.Timer(0.3, os.kill, (pid, signal.SIGKILL))
    killer.start()
    with pytest.raises(UnavailableError, match="accountant did not answer"):
        reserve(ledger, 2, slow)
    assert ledger.head() == before
    reserve(ledger, 2)
    assert server.accountant() not in (None, pid)
    assert ledger.head().sequence == before.sequence + 1
    assert ledger.spent("ward", DELTA) == from_scratch([*ROUND * 2], DELTA)


def test_a_question_that_it_died_before_is_answered_by_the_next(
    server: Server, accountant: ServedAccountant
) -> None:
    accountant.epsilon(ROUND, DELTA)
    pid = server.accountant()
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    killer = threading.Timer(0.1, os.kill, (pid, signal.SIGKILL))
    killer.start()
    assert accountant.epsilon(ROUND * 4, DELTA) == accounting.epsilon(ROUND * 4, DELTA)
    assert server.accountant() not in (None, pid)


ANSWERS = {
    "nothing": b"",
    "half": b'{"answer":"0x0',
    "no JSON": b"0x0p+0\n",
    "no object": b"[]\n",
    "no answer": b"{}\n",
    "a number": b'{"answer":0}\n',
    "not a number": b'{"answer":"nan"}\n',
    "below zero": b'{"answer":"-0x1p+0"}\n',
    "half an error": b'{"error":{"code":"CW-100"}}\n',
}


@pytest.mark.parametrize("name", sorted(ANSWERS))
def test_what_is_no_answer_spends_nothing(engine: Engine, name: str) -> None:
    asked: list[bytes] = []

    def connect() -> socket.socket:
        near, far = socket.socketpair()

        def reply() -> None:
            with far:
                asked.append(far.recv(65536))
                far.sendall(ANSWERS[name])

        threading.Thread(target=reply).start()
        return near

    ledger = open_ledger(engine, ServedAccountant(connect))
    before = ledger.head()
    for attempt in (1, 2):  # and it is not remembered
        with pytest.raises(UnavailableError, match="accountant did not answer"):
            reserve(ledger, 1)
        assert len(asked) == attempt
    assert ledger.head() == before


def test_a_missing_server_spends_nothing(tmp_path: Path, engine: Engine) -> None:
    nowhere = Trainer(tmp_path / "socket", spawn=False)
    ledger = open_ledger(engine, ServedAccountant(nowhere.connect_accountant))
    before = ledger.head()
    with pytest.raises(UnavailableError, match="no trainer answers"):
        reserve(ledger, 1)
    assert ledger.head() == before


def test_an_unreadable_question_is_refused_and_the_next_is_answered(
    server: Server, accountant: ServedAccountant
) -> None:
    accountant.epsilon(ROUND, DELTA)
    pid = server.accountant()
    for question in (b"{}\n", b"[]\n", b"{\n", b'{"ask":"money","events":[],"delta":"0x1p-9"}\n'):
        with server.trainer.connect_accountant() as connection:
            connection.sendall(question)
            assert FormatError.code.encode() in connection.recv(4096)
    with server.trainer.connect_accountant() as connection:
        connection.sendall(b'{"ask"')  # and hangs up
    assert accountant.epsilon(ROUND * 3, DELTA) > 0
    assert server.accountant() == pid


def test_an_answer_that_takes_too_long_ends_the_process(tmp_path: Path) -> None:
    code = (
        "import sys, socket\n"
        "from cipherward.site_agent.ledger.accountant_service import serve\n"
        "serve(socket.socket(fileno=int(sys.argv[1])), answer_seconds=0.05)\n"
    )
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()

        def connect() -> socket.socket:
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(str(tmp_path / "s"))
            return connection

        fd = listener.fileno()
        process = subprocess.Popen([sys.executable, "-c", code, str(fd)], pass_fds=[fd])
        with pytest.raises(UnavailableError, match="did not answer"):  # loading scipy takes longer
            ServedAccountant(connect).epsilon(ROUND, DELTA)
        assert process.wait(10) == -signal.SIGALRM


def test_it_ends_when_idle_and_comes_back_when_asked(tmp_path: Path) -> None:
    server = Server(tmp_path / "socket", 0.5)
    try:
        assert server.accountant() is None  # it is not there before it is needed
        for rounds in (1, 2):
            own = ServedAccountant(server.trainer.connect_accountant)
            assert own.epsilon(ROUND * rounds, DELTA) == accounting.epsilon(ROUND * rounds, DELTA)
            assert server.accountant() is not None
            wait_until(lambda: server.accountant() is None)
    finally:
        assert server.close() == ""


def test_without_a_question_it_ends_by_itself(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        serve(listener, idle_seconds=0.01)


# Who answers


def test_a_job_does_not_hold_the_accountants_socket(server: Server, accountant: ServedAccountant) -> None:
    """Whoever held it could answer in the accountant's place."""
    accountant.epsilon(ROUND, DELTA)
    path = str(accounting_socket(server.trainer._path))
    inodes = {
        line.split()[6]
        for line in Path("/proc/net/unix").read_text().splitlines()
        if line.endswith("/" + Path(path).name)
    }
    assert inodes

    def holds(pid: int) -> bool:
        links = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
        return any(f"socket:[{inode}]" in links for inode in inodes)

    pid = server.accountant()
    with server.trainer._connect():  # a job that waits for its request
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
        wait_until(lambda: len(children.read_text().split()) == 2)
        (job,) = {int(child) for child in children.read_text().split()} - {pid}
        wait_until(lambda: not holds(job))
        assert pid is not None and holds(pid)


def test_another_process_in_its_place_is_refused(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as impostor:
        impostor.bind(str(accounting_socket(tmp_path / "socket")))
        impostor.listen()
        trainer.connect_accountant().close()  # by this very process, as far as it has started none
        trainer._server = subprocess.Popen(["/bin/sleep", "60"], stdin=subprocess.PIPE)
        try:
            with pytest.raises(UnavailableError, match="not the trainer's own"):
                trainer.connect_accountant()
        finally:
            trainer._server.kill()
            trainer.close()
