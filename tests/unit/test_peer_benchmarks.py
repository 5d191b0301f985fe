"""The benchmarks of other packages, as far as they need none of them: processes, records, ratios, picture, errors.

Their modules are scripts beside each other and no package; they are imported from their folder."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from cipherward.errors import EnvironmentProblem, FormatError, UsageError
from cipherward.evaluation.bench.records import Record, write

PEERS = Path(__file__).parents[2] / "benchmarks" / "peers"
FIELDS = {"figure", "value", "unit", "suite", "params", "sites", "threads", "device", "baseline"}
MODULES = ("peer_systems", "peer_process", "peer_figures", "peer_plot", "peer_venv", "measure_ours", "run")


@pytest.fixture(scope="module")
def peers() -> Iterator[SimpleNamespace]:
    """The modules, by name."""
    sys.path.insert(0, str(PEERS))
    try:
        found: dict[str, ModuleType] = {name: __import__(name) for name in MODULES}
        yield SimpleNamespace(**found)
    finally:
        sys.path.remove(str(PEERS))
        for name in (*MODULES, "repetitions"):
            sys.modules.pop(name, None)


def record(figure: str, value: float, suite: str, **more: object) -> Record:
    base = Record(figure, value, "params/s", suite, 1_000_000, 10, 1, "cpu", 4e9)
    return replace(base, **more)  # type: ignore[arg-type]


# Processes


def script(tmp_path: Path, body: str) -> Path:
    """A measuring script that does ``body`` in every repetition, behind the real protocol."""
    path = tmp_path / "measure_test.py"
    indented = "\n".join(f"        {line}" for line in body.splitlines())
    path.write_text(
        "import sys, os, time\nfrom repetitions import serve\n"
        f"def prepare(arguments):\n    def repeat(done):\n{indented}\n    return repeat\n"
        "serve(prepare)\n"
    )
    return path


@pytest.fixture
def system(peers: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setenv("PYTHONPATH", str(PEERS))
    return peers.peer_systems.System("test", "test 1.0", tmp_path / "measure_test.py", 4, 10)


def test_a_script_answers_repetitions(peers: SimpleNamespace, system: object, tmp_path: Path) -> None:
    script(
        tmp_path,
        "os.write(1, b'a native warning\\n')\n"  # standard output is for answers only
        "def busy(end):\n    while time.process_time() < end: pass\n"
        "for _ in range(2):\n    with done.timed('encrypt'):\n"
        "        busy(time.process_time() + 0.02)\n        time.sleep(0.3)\n"  # sleeping is not counted
        "done.bytes['up'] = 7\n"
        "with done.peak('client'):\n    block = bytearray(50_000_000)",
    )
    log = tmp_path / "log"
    with peers.peer_process.Measuring(system, Path(sys.executable), 1000, log) as measuring:
        measuring.start()
        assert measuring.threads == 1
        warm, timed = measuring.repeat(peaks=True), measuring.repeat(peaks=False)
    assert 0.04 <= warm.seconds["encrypt"] < 0.3
    assert warm.bytes == {"up": 7}
    assert 45e6 < warm.peaks["client"] < 80e6
    assert timed.peaks == {}
    assert "a native warning" in log.read_text()


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("raise RuntimeError('no such class')", "RuntimeError: no such class"),
        ("os.kill(os.getpid(), 9)", "out of memory"),
        ("os._exit(5)", "it ended with status 5"),
    ],
)
def test_a_script_that_dies_is_one_line(
    peers: SimpleNamespace, system: object, tmp_path: Path, body: str, why: str
) -> None:
    script(tmp_path, body)
    with peers.peer_process.Measuring(system, Path(sys.executable), 1000, tmp_path / "log") as measuring:
        measuring.start()
        with pytest.raises(EnvironmentProblem, match=r"measuring test 1\.0 failed") as caught:
            measuring.repeat(peaks=False)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_interruption_leaves_no_process(peers: SimpleNamespace, system: object, tmp_path: Path) -> None:
    script(tmp_path, "time.sleep(600)")
    with (
        pytest.raises(KeyboardInterrupt),
        peers.peer_process.Measuring(system, Path(sys.executable), 1000, tmp_path / "log") as measuring,
    ):
        measuring.start()
        raise KeyboardInterrupt
    assert measuring._process.returncode is not None


def test_a_hung_script_is_ended(
    peers: SimpleNamespace, system: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(tmp_path, "time.sleep(600)")
    with peers.peer_process.Measuring(system, Path(sys.executable), 1000, tmp_path / "log") as measuring:
        measuring.start()
        monkeypatch.setattr(peers.peer_process, "LIMIT", 0.2)
        with pytest.raises(EnvironmentProblem, match="took longer"):
            measuring.repeat(peaks=False)


def test_a_worker_s_processor_time_is_seen(peers: SimpleNamespace) -> None:
    """What counts for the suite that encrypts in a process of its own."""
    code = (
        "import time\nwhile time.process_time() < 0.1: pass\nprint(time.process_time(), flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdout is not None
        used = float(worker.stdout.readline())
        seen = time.clock_gettime(peers.measure_ours.process_clock(worker.pid))
        assert used <= seen < used + 0.1
        worker.communicate("\n")


@pytest.mark.parametrize("suite", ["quorum:q32", "shared-key:seal-4096-48"])
def test_our_own_sets_are_measured(peers: SimpleNamespace, tmp_path: Path, suite: str) -> None:
    own = next(each for each in peers.peer_systems.OURS if each.name == suite)
    with peers.peer_process.Measuring(own, Path(sys.executable), 20_000, tmp_path / "log") as measuring:
        measuring.start()
        answer = measuring.repeat(peaks=True)
    assert 0 < answer.seconds["encrypt_only"] < answer.seconds["encrypt"]
    assert answer.bytes["up"] > 4 * 20_000
    assert "client" in answer.peaks


# Records and ratios


def answers(peers: SimpleNamespace) -> list[object]:
    """A slow warm-up, then 2, 1 and 3 seconds."""
    return [
        peers.peer_process.Answer(
            {"encrypt": seconds, "add": 2 * seconds, "share": seconds}, {"up": 8_000_000}, {"client": 5_000_000}
        )
        for seconds in (100.0, 2.0, 1.0, 3.0)
    ]  # fmt: skip


def test_records_have_the_shape_of_the_bench(peers: SimpleNamespace) -> None:
    system = peers.peer_systems.PEERS[0]
    plain = {"encrypt": 4e9, "add": 3e9}
    found = peers.peer_figures.records_of(system, 1_000_000, 1, answers(peers), plain)
    by_figure = {each.figure: each for each in found}
    assert all(set(asdict(each)) == FIELDS for each in found)
    assert {each.suite for each in found} == {system.label}
    assert by_figure["encrypt"].value == 1_000_000 / 2  # the median, without the warm-up
    assert by_figure["encrypt"].baseline == 4e9
    assert by_figure["add"].value == system.sites * 1_000_000 / 4  # of all sites' parameters
    assert (by_figure["share"].value, by_figure["share"].unit) == (2.0, "s")
    assert (by_figure["bytes_up"].value, by_figure["bytes_up"].baseline) == (8.0, 4.0)
    assert (by_figure["peak_memory"].value, by_figure["peak_memory"].unit) == (5.0, "MB")


def test_later_records_replace_earlier_ones_of_the_same_figure(peers: SimpleNamespace) -> None:
    old, new = record("encrypt", 1.0, "a"), record("encrypt", 2.0, "a")
    two_threads, other = record("encrypt", 3.0, "a", threads=2), record("encrypt", 4.0, "b")
    assert peers.peer_figures.merged([old, two_threads], [other, new]) == [two_threads, other, new]


def test_ratios(peers: SimpleNamespace) -> None:
    records = [
        record("encrypt", 50e6, "quorum:q32"),
        record("encrypt", 90e6, "quorum:q32", threads=2),
        record("encrypt", 2e6, "their"),
        record("encrypt_as_released", 1e6, "their"),
        record("encrypt", 9e6, "their", params=7),
    ]
    lines = peers.peer_figures.ratios(records, ["quorum:q32"], ["their", "absent"])
    assert lines == [
        "1000000 parameters: quorum:q32 encrypts 25.0 times as fast as their (50.0 times, as released)"
    ]


# The picture


def everything(peers: SimpleNamespace, **more: object) -> list[Record]:
    found = []
    for place, (suite, _) in enumerate(peers.peer_plot.ROWS[1:]):
        found.append(record("encrypt", 1e6 * (place + 1), suite, **more))
        found.append(record("bytes_up", 4.0 + place, suite, unit="B/param", baseline=4.0, **more))
    return found


def test_the_picture_has_a_row_for_each_system(peers: SimpleNamespace, tmp_path: Path) -> None:
    records = [*everything(peers), record("encrypt", 1.0, "quorum:q32", params=10)]
    rows = peers.peer_plot.bars(records, 1_000_000)
    assert [row.suite for row in rows] == [suite for suite, _ in peers.peer_plot.ROWS]
    assert (rows[0].bytes_up, rows[0].encrypt) == (4.0, 4e9)
    assert (rows[1].bytes_up, rows[1].encrypt) == (4.0, 1e6)
    out = tmp_path / "plot.png"
    peers.peer_plot.draw(records, out)
    assert out.read_bytes().startswith(b"\x89PNG") and out.stat().st_size > 10_000


def test_the_picture_is_made_from_files(peers: SimpleNamespace, tmp_path: Path) -> None:
    records = everything(peers)
    write(records[:6], tmp_path / "crypto.json")
    write(records[6:], tmp_path / "peers.json")
    out = tmp_path / "plot.png"
    files = [str(tmp_path / "crypto.json"), str(tmp_path / "peers.json")]
    assert peers.peer_plot.main([*files, "--out", str(out)]) == 0
    assert out.stat().st_size > 10_000


def test_a_figure_that_is_missing_is_said_to_be(peers: SimpleNamespace, tmp_path: Path) -> None:
    records = [each for each in everything(peers) if each.figure == "encrypt" or each.suite != "quorum:q32"]
    assert peers.peer_plot.bars(records, 1_000_000)[1].bytes_up is None
    peers.peer_plot.draw(records, tmp_path / "plot.png")


def test_nothing_to_plot_is_an_error(peers: SimpleNamespace, tmp_path: Path) -> None:
    for records in ([], [record("bytes_up", 4.0, "quorum:q32", baseline=None)]):
        with pytest.raises(UsageError, match="nothing to plot"):
            peers.peer_plot.draw(records, tmp_path / "plot.png")


@pytest.mark.parametrize("content", [b"", b"{", b'[{"figure": "encrypt"}]', b'["x"]', b"\xff"])
def test_a_file_without_records_is_refused(peers: SimpleNamespace, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(FormatError, match="records"):
        peers.peer_plot.read(path)


def test_the_picture_names_a_missing_file(
    peers: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert peers.peer_plot.main([str(tmp_path / "none.json"), "--out", str(tmp_path / "plot.png")]) == 3
    error = capsys.readouterr().err
    assert "none.json" in error and error.count("\n") == 1


# Environments and the command


def test_versions_are_pinned_and_are_those_that_records_name(peers: SimpleNamespace) -> None:
    for peer in peers.peer_systems.PEERS:
        lines = [line for line in peer.requirements.read_text().splitlines() if not line.startswith("#")]
        pins = dict(re.fullmatch(r"(\w+)(?:\[\w+\])?==([\d.]+)", line).groups() for line in lines)  # type: ignore[union-attr]
        package, version, _ = peer.label.split()
        assert pins[package].startswith(version)
        assert "numpy" in pins


def test_a_python_without_wheels_is_refused(peers: SimpleNamespace) -> None:
    peer = peers.peer_systems.PEERS[0]
    peers.peer_venv.check_python(peer, (3, 11))
    with pytest.raises(UsageError, match=r"Python 3\.14"):
        peers.peer_venv.check_python(peer, (3, 14))


@pytest.mark.parametrize(
    ("output", "why"),
    [
        (
            "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError('<...>: Failed to "
            "establish a new connection: [Errno 111] Connection refused')': /simple/flwr/\n"
            "ERROR: Could not find a version that satisfies the requirement flwr==1.41.0 (from versions: none)\n"
            "ERROR: No matching distribution found for flwr==1.41.0",
            "not reached",
        ),
        ("ERROR: No matching distribution found for flwr==99", "no such version"),
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("Building\nERROR: Failed to build tenseal\nnotice", "Failed to build tenseal"),
        ("", "pip said nothing"),
    ],
)
def test_failed_installations_are_explained(
    peers: SimpleNamespace, tmp_path: Path, output: str, why: str
) -> None:
    problem = str(peers.peer_venv.explain(peers.peer_systems.PEERS[1], output, tmp_path / "log"))
    assert why in problem and str(tmp_path / "log") in problem and "\n" not in problem


@pytest.mark.slow
def test_an_environment_is_made_once(peers: SimpleNamespace, tmp_path: Path) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("")
    peer = replace(peers.peer_systems.PEERS[1], requirements=requirements)
    folder = tmp_path / "peers" / "flower"
    assert not peers.peer_venv.is_installed(peer, folder)
    peers.peer_venv.install(peer, folder)
    assert peers.peer_venv.is_installed(peer, folder)
    requirements.write_text("flwr==1.42.0\n")
    assert not peers.peer_venv.is_installed(peer, folder)


def test_a_failed_installation_leaves_no_stamp(peers: SimpleNamespace, tmp_path: Path) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("")
    peer = replace(peers.peer_systems.PEERS[1], requirements=requirements)
    folder = tmp_path / "flower"
    folder.write_text("a file where the folder goes")
    with pytest.raises(EnvironmentProblem, match="was not installed"):
        peers.peer_venv.install(peer, folder)
    assert not peers.peer_venv.is_installed(peer, folder)


def test_too_large_a_model_is_refused_before_anything_runs(peers: SimpleNamespace) -> None:
    check, systems = peers.run.check_memory, peers.peer_systems.PEERS
    check(systems, 1_000_000, "MemTotal: 9 kB\nMemAvailable:   8000000 kB\n")
    with pytest.raises(EnvironmentProblem, match="do not fit"):
        check(systems, 100_000_000, "MemAvailable:   8000000 kB\n")


def test_the_command_says_what_failed_and_where(peers: SimpleNamespace, tmp_path: Path) -> None:
    """An environment that lost its package: one line, exit status 3, no records."""
    peer = peers.peer_systems.PEERS[0]
    folder = tmp_path / "flare"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    (folder / ".installed").write_bytes(peers.peer_venv._wanted(peer.requirements))
    done = subprocess.run(
        [sys.executable, str(PEERS / "run.py"), "--peer", "flare", "--venv", str(tmp_path),
         "--json", str(tmp_path / "out.json")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "No module named 'nvflare'" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_where_to_write_is_checked_first(
    peers: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    assert peers.run.main(["--venv", str(tmp_path / "peers"), option, str(tmp_path / "no" / "file")]) == 2
    assert "its folder does not exist" in capsys.readouterr().err
    assert not (tmp_path / "peers").exists()


def test_interrupting_the_command_is_clean(
    peers: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(peers.run, "run", interrupted)
    assert peers.run.main([]) == 130
    assert capsys.readouterr().err.startswith("interrupted")
