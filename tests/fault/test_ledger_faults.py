"""The ledger under kill -9 and a full disk: what was acknowledged is there, and the chain holds."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import event

from cipherward.clock import ManualClock
from cipherward.database import make_engine
from cipherward.errors import EnvironmentProblem, UnavailableError
from cipherward.ids import Digest
from cipherward.site_agent.ledger.accountant import LocalAccountant
from cipherward.site_agent.ledger.accounting import Gaussian, epsilon
from cipherward.site_agent.ledger.chain import Kind
from cipherward.site_agent.ledger.ledger import Ledger
from cipherward.site_agent.ledger.patients import PatientKey
from cipherward.site_agent.state.metadata import metadata

# Run as a program of its own, to be killed: acknowledges each reservation on stdout, then goes on.
VICTIM = """
import sys
from pathlib import Path
from cipherward.clock import ManualClock
from cipherward.database import make_engine
from cipherward.ids import Digest
from cipherward.site_agent.ledger.accounting import Gaussian
from cipherward.site_agent.ledger.ledger import Ledger
from cipherward.site_agent.ledger.patients import PatientKey

class Free:
    "An accountant that loads in no time; what is tested here is what gets recorded."
    def epsilon(self, events, delta):
        return 0.0

engine = make_engine("sqlite:///" + sys.argv[1])
ledger = Ledger(engine, PatientKey(bytes(32)), accountant=Free(), clock=ManualClock())
cost, manifest = [Gaussian(50.0)], Digest(bytes(32))
first = int(sys.argv[2])
for number in range(first, first + 100_000):
    head = ledger.reserve("ward", "s", number, cost, manifest=manifest, ceiling=9.0, delta=1e-5)
    if number % 5 == 0:
        ledger.mark_lost("ward", "s", number)
    print(number, head.sequence, head.digest.hex(), flush=True)
"""
DELTA = 1e-5


def open_ledger(path: Path, *, spare_pages: int | None = None) -> Ledger:
    """With ``spare_pages``, on a database that may grow by so many only: a full disk, as SQLite sees it."""
    engine = make_engine(f"sqlite:///{path}")
    metadata.create_all(engine)
    if spare_pages is not None:
        with engine.connect() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one() + spare_pages
        engine.dispose()
        event.listen(engine, "connect", lambda c, _: c.execute(f"PRAGMA max_page_count={pages}"))
    return Ledger(engine, PatientKey(bytes(32)), accountant=LocalAccountant(), clock=ManualClock())


def spend(ledger: Ledger, number: int) -> None:
    ledger.reserve(
        "ward", "s", number, [Gaussian(50.0)], manifest=Digest(bytes(32)), ceiling=99.0, delta=DELTA
    )


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "site.db"
    open_ledger(path).register("ward", ["a", "b"])
    acknowledged: list[tuple[int, int, str]] = []
    for attempt in range(5):
        first = acknowledged[-1][0] + 1 if acknowledged else 1
        command = [sys.executable, "-c", VICTIM, str(path), str(first)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as victim:
            assert victim.stdout is not None
            lines = [  # so many, however slow the disk
                victim.stdout.readline() for _ in range(5 * attempt + 1)
            ]
            time.sleep(0.013 * attempt)
            victim.send_signal(signal.SIGKILL)
            lines += victim.stdout.readlines()
        assert victim.returncode == -signal.SIGKILL
        whole = [line.split() for line in lines if line.endswith("\n")]
        acknowledged += [(int(number), int(sequence), digest) for number, sequence, digest in whole]

        ledger = open_ledger(path)
        head = ledger.verify_chain()
        for _, sequence, digest in acknowledged:
            ledger.check_not_rolled_back(sequence, bytes.fromhex(digest))
        # At most the one reservation that was being acknowledged is there besides, and it counts.
        reserved = ledger.count(Kind.RESERVE, "ward")
        assert len(acknowledged) <= reserved <= len(acknowledged) + attempt + 1
        exact = epsilon(
            [Gaussian(50.0, reserved)], DELTA
        )  # but for the last digits of a sum of inverse variances
        assert ledger.spent("ward", DELTA) == pytest.approx(exact, rel=1e-9)
        assert head == ledger.head()
    assert len(acknowledged) > 20


def test_a_full_disk_is_a_clean_error_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "site.db"
    ledger = open_ledger(path, spare_pages=4)
    ledger.register("ward", ["a", "b"])
    done = 0
    with pytest.raises(EnvironmentProblem, match="disk is full"):
        for number in range(1, 1000):
            spend(ledger, number)
            done = number
    assert done >= 3
    head = ledger.verify_chain()
    with pytest.raises(EnvironmentProblem):
        ledger.register("ward", [f"p{number}" for number in range(2000)])
    assert ledger.head() == head and ledger.dataset("ward").patients == 2
    freed = open_ledger(path)  # the admin made room and started again
    assert freed.verify_chain() == head
    assert freed.count(Kind.RESERVE, "ward") == done
    spend(freed, done + 1)
    assert freed.verify_chain().sequence == head.sequence + 1


def _fill(path: str, number: int) -> str:
    ledger = open_ledger(Path(path))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    # Once all is loaded: it is for the ledger's writes.
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    try:
        for step in range(number, number + 1000):
            spend(ledger, step)
    except EnvironmentProblem as error:
        return str(error)
    return ""


def test_the_operating_system_refusing_to_write_is_a_clean_error(tmp_path: Path) -> None:
    """A file size limit on a real process: writes fail in the middle, below SQLite."""
    path = tmp_path / "site.db"
    open_ledger(path).register("ward", ["a", "b"])
    code = (
        "import sys, importlib.util\n"
        "spec = importlib.util.spec_from_file_location('faults', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "print(module._fill(sys.argv[2], 1))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, __file__, str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("CW-200 cannot"), done.stdout
    assert "disk is full or fails" in done.stdout
    ledger = open_ledger(path)
    head, reserved = ledger.verify_chain(), ledger.count(Kind.RESERVE, "ward")
    assert reserved >= 3 and head.sequence == reserved + 1
    spend(ledger, reserved + 1)


def test_a_database_held_by_another_process_is_said_so(tmp_path: Path) -> None:
    path = tmp_path / "site.db"
    ledger = open_ledger(path)
    engine = make_engine(f"sqlite:///{path}")
    event.listen(engine, "connect", lambda c, _: c.execute("PRAGMA busy_timeout=50"))
    impatient = Ledger(engine, PatientKey(bytes(32)), accountant=LocalAccountant(), clock=ManualClock())
    with ledger._engine.begin(), pytest.raises(UnavailableError, match="another process holds"):
        impatient.register("ward", ["a"])
    impatient.register("ward", ["a"])


def test_a_file_that_is_no_database_is_said_so(tmp_path: Path) -> None:
    path = tmp_path / "site.db"
    ledger = open_ledger(path)
    ledger.register("ward", ["a"])
    ledger._engine.dispose()
    content = bytearray(path.read_bytes())
    content[:100] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(EnvironmentProblem, match="not a database"):
        ledger.head()
