"""Whatever a worker process does, its parent goes on, says what happened, and gets a new one."""

import os
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cipherward.errors import BudgetError, FormatError, UnavailableError
from cipherward.isolated import IsolatedWorker

PROBES = Path(__file__).parent / "probes"
MIB = 2**20


@pytest.fixture
def make(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(PROBES))
    monkeypatch.setenv("DATABASE_PASSWORD", "hunter2")
    made = []

    def worker(**options):
        options = {"memory_bytes": 64 * MIB, "timeout": 20.0} | options
        made.append(IsolatedWorker("isolated_probe", **options))
        return made[-1]

    yield worker
    for one in made:
        one.close()


def test_answers_in_parts_and_beyond_the_size_of_a_pipe(make):
    worker = make()
    large = os.urandom(5 * MIB)
    assert worker.request("echo", b"a", memoryview(large), b"z", doing="echoing") == b"a" + large + b"z"
    assert worker.request("echo", doing="echoing") == b""
    assert int(worker.request("pid", doing="asking")) == worker.pid


def test_keeps_state_until_it_is_lost_and_then_opens_again(make):
    worker = make(opening=[("keep", b"key")])
    assert worker.request("value", doing="asking") == b"key"
    worker.request("keep", b"other", doing="telling")
    assert worker.request("value", doing="asking") == b"other"
    os.kill(worker.pid, signal.SIGKILL)
    os.waitid(os.P_PID, worker.pid or 0, os.WEXITED | os.WNOWAIT)
    assert worker.pid is None
    assert worker.request("value", doing="asking") == b"key"


def test_closed_it_does_not_start_again(make):
    worker = make()
    worker.request("echo", doing="starting")
    worker.close()
    assert worker.pid is None
    with pytest.raises(UnavailableError, match="it was closed"):
        worker.request("echo", doing="asking")
    assert worker.pid is None


@pytest.mark.parametrize(
    ("operation", "body", "why"),
    [
        ("crash", b"", "it died (SIGSEGV)"),
        ("secret_error", b"hunter2", "it met ValueError"),
        ("no such operation", b"", "it met KeyError"),
        ("allocate", str(512 * MIB).encode(), "it met MemoryError"),
    ],
)
def test_a_failing_worker_is_reported_and_replaced(make, operation, body, why):
    worker = make()
    with pytest.raises(UnavailableError) as caught:
        worker.request(operation, body, doing="adding chunk 3")
    assert caught.value.what == "a worker process failed while adding chunk 3"
    assert caught.value.why == why
    assert "hunter2" not in str(caught.value)
    assert worker.pid is None
    assert worker.request("echo", b"again", doing="echoing") == b"again"


def test_memory_below_the_cap_is_given(make):
    assert make().request("allocate", str(32 * MIB).encode(), doing="allocating") == str(32 * MIB).encode()


def test_a_hanging_worker_is_killed_at_the_timeout(make):
    worker = make(timeout=0.3)
    worker.request("echo", doing="starting")
    pid, begin = worker.pid, time.monotonic()
    with pytest.raises(UnavailableError, match=r"did not finish within 0\.3 s"):
        worker.request("hang", doing="waiting")
    assert time.monotonic() - begin < 5
    assert not Path(f"/proc/{pid}").exists()


def test_a_worker_that_stops_reading_is_killed_at_the_timeout(make):
    worker = make(timeout=0.3)
    worker.request("echo", doing="starting")
    os.kill(worker.pid, signal.SIGSTOP)
    with pytest.raises(UnavailableError, match=r"did not finish within 0\.3 s"):
        worker.request("echo", bytes(8 * MIB), doing="writing")


def test_an_error_of_ours_arrives_whole_and_costs_no_process(make):
    worker = make()
    pid = int(worker.request("pid", doing="asking"))
    with pytest.raises(BudgetError) as caught:
        worker.request("refuse", doing="asking")
    assert (caught.value.what, caught.value.why, caught.value.fix) == ("spent", "it is gone", "Wait")
    assert worker.pid == pid


def test_a_refused_opening_is_not_skipped_next_time(make):
    worker = make(opening=[("refuse", b"")])
    for _ in range(2):
        with pytest.raises(BudgetError):
            worker.request("echo", b"x", doing="echoing")
        assert worker.pid is None


def test_prints_and_stdin_do_not_touch_the_protocol(make):
    worker = make()
    assert worker.request("chatter", doing="asking") == b"quiet"
    assert worker.request("echo", b"x", doing="echoing") == b"x"


def test_a_reply_beyond_the_limit_is_refused_before_it_is_read(make):
    worker = make(reply_limit=1000)
    assert len(worker.request("zeros", b"1000", doing="asking")) == 1000
    with pytest.raises(UnavailableError, match="announced a reply of 1002 bytes"):
        worker.request("zeros", b"1001", doing="asking")


@pytest.mark.parametrize(
    "lie",
    [
        struct.pack(">I", 0),
        struct.pack(">I", 2**32 - 1),
        struct.pack(">I", 5) + b"\x01junk",
        struct.pack(">I", 3) + b"\x01{}",
        struct.pack(">I", 2) + b"\x09x",
    ],
)
def test_a_worker_that_breaks_the_protocol_is_lost(make, lie):
    worker = make(timeout=5)
    with pytest.raises(UnavailableError):
        worker.request("lie", lie, doing="asking")
    assert worker.pid is None
    assert worker.request("echo", b"x", doing="echoing") == b"x"


def test_a_request_too_large_is_refused_here(make):
    worker = make()
    with pytest.raises(FormatError, match="too large"):
        worker.request("echo", memoryview(bytes(2**28)), doing="echoing")
    assert worker.request("echo", b"x", doing="echoing") == b"x"


def test_a_request_without_a_meaning_of_its_own_starts_no_process(make):
    worker = make()
    with pytest.raises(UnavailableError, match="it was lost before"):
        worker.request("echo", doing="going on", start=False)
    assert worker.pid is None


def test_signals_to_the_group_do_not_stop_it(make):
    worker = make()
    assert worker.request("interrupt", doing="asking") == b"still here"
    assert os.getpgid(worker.pid) != os.getpgid(0)


def test_environment_is_only_what_python_needs(make):
    text = make().request("environment", doing="asking").decode()
    assert "MALLOC_ARENA_MAX" in text
    assert "hunter2" not in text


def test_outlives_the_thread_that_started_it(make):
    worker = make(opening=[("keep", b"key")])
    thread = threading.Thread(target=lambda: worker.request("keep", b"told", doing="telling"))
    thread.start()
    thread.join()
    time.sleep(0.05)
    assert worker.request("value", doing="asking") == b"told"


def test_close_interrupts_another_threads_request(make):
    worker = make()
    worker.request("echo", doing="starting")
    caught = []

    def hang():
        try:
            worker.request("hang", doing="waiting")
        except UnavailableError as error:
            caught.append(error)

    thread = threading.Thread(target=hang)
    thread.start()
    time.sleep(0.1)
    worker.close()
    thread.join(5)
    assert len(caught) == 1


def test_dies_with_its_parent_even_when_busy():
    program = (
        "import os, threading, time\n"
        "from cipherward.isolated import IsolatedWorker\n"
        "worker = IsolatedWorker('isolated_probe', memory_bytes=2**26, timeout=60)\n"
        "print(worker.request('pid', doing='asking').decode(), flush=True)\n"
        "threading.Thread(target=lambda: worker.request('hang', doing='x'), daemon=True).start()\n"
        "time.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(PROBES)}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment, stderr=subprocess.DEVNULL
    ) as parent:
        worker = Path("/proc") / parent.stdout.readline().decode().strip()
        assert worker.exists()
        time.sleep(0.2)
        parent.kill()
        parent.wait()
    end = time.monotonic() + 5
    while alive(worker):
        assert time.monotonic() < end, "the worker outlived its parent"
        time.sleep(0.02)


def alive(process: Path) -> bool:
    """Whether it runs: its new parent may be slow to reap it, but a zombie has no memory left."""
    try:
        return "Z (zombie)" not in (process / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
