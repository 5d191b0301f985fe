"""The threat runner: what a row's outcome is, the reports, exit statuses, and that every threat has its row."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cipherward.cli.app import main
from cipherward.errors import UsageError
from cipherward.evaluation.threats import registry, worker
from cipherward.evaluation.threats.bypass import replaced
from cipherward.evaluation.threats.outcome import Outcome, Verdict, write_json
from cipherward.evaluation.threats.report import write_report
from cipherward.evaluation.threats.row import Case, Interval, Picture, Result, Row
from cipherward.evaluation.threats.statistics import (
    advantage,
    detectable_advantage,
    hoeffding,
    proportion,
    split_level,
)
from cipherward.evaluation.threats.worker import Running

PAGE = (Path(__file__).parents[2] / "docs" / "threat-model.md").read_text()
FIELDS = ("id", "title", "control", "defended", "passed", "control_worked", "seconds")


def row(**changes):
    made = Row(
        "T99",
        "a <threat>",
        "somebody",
        "a key",
        "a paper",
        "a share",
        "if small",
        (1,),
        1.0,
        2.0,
        lambda context: None,
    )
    return replace(made, **changes)


def result(*, worked=True, held=True):
    figure = Interval(0.1, 0.0, 0.2, 0.95)
    return Result({"read": 1.0, "with <b>": figure}, {"read": False}, worked, held, "a plain line & more")


def case(*, worked=True, held=True):
    return Case("one", "got through", worked, "refused", held)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (result(), Verdict.PASSED),
        (result(held=False), Verdict.FAILED),
        (result(worked=False), Verdict.ERROR),
        (result(worked=False, held=False), Verdict.ERROR),
        (None, Verdict.ERROR),
    ],
)
def test_a_row_without_a_working_control_is_an_error(found, verdict):
    outcome = Outcome(row(), True, 1.0, found, "" if found else "it raised")
    assert outcome.verdict is verdict
    assert outcome.to_json()["passed"] is (verdict is Verdict.PASSED)
    assert bool(outcome.reason) is (verdict is Verdict.ERROR)


def test_cases_hold_only_together():
    assert Result.of_cases([case(), case()], "").held
    assert not Result.of_cases([case(), case(held=False)], "").held
    assert not Result.of_cases([case(), case(worked=False)], "").control_worked
    assert not Result.of_cases([], "").control_worked  # an empty row shows nothing


def test_reports_are_whole_and_nothing_in_them_is_markup(tmp_path):
    drawn = replace(result(), pictures=[Picture("a plot", "data:image/png;base64,AA==", 20)], cases=[case()])
    outcomes = [Outcome(row(), True, 1.0, drawn), Outcome(row(), True, 1.0, None, "it <died>")]
    write_json(outcomes, tmp_path / "report.json")
    entries = json.loads((tmp_path / "report.json").read_text())
    assert all(set(FIELDS) <= entry.keys() for entry in entries)
    assert entries[0]["control"]["with <b>"] == {"value": 0.1, "low": 0.0, "high": 0.2, "level": 0.95}
    write_report(outcomes, tmp_path / "report.html", fast=True, seconds=1.0)
    page = (tmp_path / "report.html").read_text()
    assert "it &lt;died&gt;" in page and "<threat>" not in page
    assert "data:image/png" in page and "http" not in re.sub(r"https?://www\.w3\.org", "", page)


def test_a_run_writes_both_reports_and_replaces_only_its_own(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["threats", "run", "--row", "t09", "--fast", "--out", str(out)]
    assert main(arguments) == 0
    (entry,) = json.loads((out / "report.json").read_text())
    assert entry["id"] == "T09" and entry["passed"] and entry["control_worked"] and entry["fast"]
    assert (out / "report.html").exists() and not (out / "work").exists()
    (out / "report.json").unlink()
    assert main(arguments) == 0
    assert (out / "report.json").exists()
    assert "T09 passed" in capsys.readouterr().out
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    assert main([*arguments[:-1], str(other)]) == 2
    assert (other / "thesis.txt").read_text() == "mine"


def test_a_row_that_raises_or_fails_is_the_commands_failure(tmp_path, monkeypatch):
    for found in (
        Outcome(row(), True, 1.0, None, "it raised"),
        Outcome(row(), True, 1.0, result(held=False)),
    ):
        monkeypatch.setattr("cipherward.evaluation.threats.runner.run", lambda options, found=found: [found])
        assert main(["threats", "run", "--out", str(tmp_path)]) == 1


def started(target, *arguments, silent=False):
    """A row's process that does something else; ``silent``: its end of the pipe stays open."""
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=target, args=arguments)
    process.start()
    if silent:
        process.sender = sender
    else:
        sender.close()
    return Running(row(), True, Path("T99.log"), process, receiver, time.monotonic())


def polled(running):
    deadline = time.monotonic() + 30
    while (outcome := running.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return outcome


def test_a_row_that_dies_is_an_error():
    outcome = polled(started(os._exit, 7))
    assert outcome.verdict is Verdict.ERROR and "ended with 7" in outcome.reason


def test_a_row_that_hangs_is_stopped(monkeypatch):
    monkeypatch.setattr(worker, "_LEAST_SECONDS", 0.0)
    monkeypatch.setattr(worker, "_HANG", 0.1)
    running = started(time.sleep, 600, silent=True)
    outcome = polled(running)
    assert outcome.verdict is Verdict.ERROR and "did not end" in outcome.reason
    assert not running.process.is_alive()


def test_there_is_no_other_row():
    with pytest.raises(UsageError, match="no row 'T25'"):
        registry.load("T25")
    assert [one.id for one in registry.chosen(["t09", "T09", "T08"])] == ["T08", "T09"]


def test_every_threat_has_a_row_and_a_place_in_the_threat_model():
    assert registry.built() == sorted(registry.THREATS)
    assert sorted(re.findall(r"^\| (T\d\d) \|", PAGE, re.MULTILINE)) == sorted(registry.THREATS)


def test_each_failure_of_another_system_has_a_test_that_exists():
    table = PAGE.partition("## Failures of other systems, as tests here\n")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 14
    for line in rows:
        named = re.findall(r"`(tests/[^`]+)`", line)
        assert named, line
        for path, _, name in (one.partition("::") for one in named):
            text = (Path(__file__).parents[2] / path).read_text()
            assert re.search(rf"^(async )?def {name}\(", text, re.MULTILINE), f"{path}::{name}"


def test_listing_names_every_threat(capsys):
    assert main(["threats", "list"]) == 0
    shown = capsys.readouterr().out
    assert all(identity in shown for identity in registry.THREATS)


def test_a_defence_that_is_gone_is_not_missed_in_silence():
    class Owner:
        defence = 1

    with replaced(Owner, "defence", 2):
        assert Owner.defence == 2
    assert Owner.defence == 1
    with pytest.raises(AttributeError), replaced(Owner, "renamed", 2):
        pass


def test_intervals_have_power():
    assert proportion(0, 20).low == 0 and proportion(0, 20).high == pytest.approx(0.1684, abs=1e-4)
    assert proportion(20, 20).high == 1 and proportion(20, 20).low == pytest.approx(1 - 0.1684, abs=1e-4)
    assert advantage(50, 100).holds(0) and not advantage(80, 100).holds(0)
    assert not advantage(40, 40, split_level(40, 0.999)).holds(0)
    # What is said to be seen is: the advantage of a biased coin.
    rng = np.random.default_rng(0)
    for trials in (160, 1200):
        level = split_level(40, 0.999)
        real = detectable_advantage(trials, level)
        right = rng.binomial(trials, (1 + real) / 2, 2000)
        found = {count: not advantage(count, trials, level).holds(0) for count in set(right.tolist())}
        assert 0.88 < np.mean([found[count] for count in right.tolist()]) < 0.95
    assert detectable_advantage(4, 0.999) == 1.0
    wide = hoeffding(0.5, 100, 1.0)
    assert wide.low < 0.4 < 0.6 < wide.high


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.slow
def test_a_run_that_is_ended_leaves_no_process_and_no_folder(tmp_path, how):
    """Cancelled like Ctrl-C or by CI; after SIGKILL the rows notice that nobody waits for them."""
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "cipherward.cli.app",
        "threats",
        "run",
        "--row",
        "T17",
        "--out",
        str(out),
    ]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)

    def rows():
        found = set()
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                status = path.joinpath("stat").read_text().rpartition(")")[2].split()
                if status[3] == str(run.pid) and status[0] != "Z" and path.name != str(run.pid):
                    found.add(path.name)
        return found

    deadline = time.monotonic() + 60
    while not (out / "logs" / "T17.log").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert rows()
    run.send_signal(how)
    assert run.wait(30) != 0
    deadline = time.monotonic() + 60
    while rows():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert how is signal.SIGKILL or not (out / "work").exists()
