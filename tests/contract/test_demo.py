"""The demo as a user runs it: real processes, real mutual TLS, real data."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cipherward.errors import UsageError
from cipherward.evaluation.demo.run import hospital_parts, prepare_folder

COMMAND = [sys.executable, "-m", "cipherward.cli.app", "demo"]


def processes_of(workdir: Path) -> list[str]:
    """Command lines of all processes that name the folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(workdir) in line:
            found.append(line)
    return found


@pytest.mark.slow
def test_demo_trains_twice_in_one_folder(tmp_path: Path) -> None:
    workdir, out = tmp_path / "my demo? 50%25 #1", tmp_path / "out.json"  # a space, and what URLs are made of
    common = ["--rounds", "2", "--workdir", str(workdir), "--json", str(out)]
    for suite, more, who in (
        ("quorum", [], "3 of 4 sites open a sum"),
        ("shared-key", ["--suite", "shared-key"], "every site holds the key"),
    ):
        arguments = [*common, *more]
        done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        result = json.loads(out.read_text())
        assert result["suite"] == suite
        assert who in result["trust"]
        assert who in " ".join(done.stdout.split())
        assert [site["name"] for site in result["sites"]] == [
            "cleveland",
            "hungary",
            "switzerland",
            "va-long-beach",
        ]
        for site in result["sites"]:
            assert 0 < site["epsilon"] <= 3.0
            assert site["delta"] == 1e-4
            assert 0.5 < site["auc_federated"] <= 1
            assert site["auc_local"] is not None
        assert 0.6 < result["auc_pooled_dp"] <= 1
        assert result["auc_pooled"] > 0.7
        assert [entry["round"] for entry in result["rounds"]] == [1, 2]
        assert all(len(entry["contributors"]) == 4 for entry in result["rounds"])
        assert all(entry["bytes_up_per_param"] > 4 for entry in result["rounds"])
        audit = result["audit"]
        assert (audit["closed_rounds"], audit["signatures"]) == (2, 2 * 4 * 3)
        # The demo's machine has every site's key: no place to add up sums of the shared-key suite.
        assert audit["sums_added_up"] == (2 if suite == "quorum" else 0)
        assert bool(audit["not_added_up"]) == (suite == "shared-key")
        assert "audit: 24 signatures" in done.stdout
        page = (workdir / "report.html").read_text()
        assert "switzerland" in page and who in page
        assert "data:image/svg+xml" in page
        assert "AUC federated" in done.stdout
        assert "Traceback" not in done.stdout + done.stderr
        assert processes_of(workdir) == []
    secrets = [path for path in workdir.rglob("*.key") if path.stat().st_mode & 0o077]
    assert secrets == []


@pytest.mark.slow
def test_demo_of_shared_noise(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    arguments = ["--strategy", "dp-fedsgd", "--workdir", str(tmp_path / "demo"), "--json", str(out)]
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text())
    assert (result["strategy"], result["params"], len(result["rounds"])) == ("dp-fedsgd", "q16", 10)
    noise = result["shared_noise"]
    assert noise["realised"] == [pytest.approx(noise["promised"] * (4 / 3) ** 0.5)] * 10
    assert "noise shared by the sites" in done.stdout
    assert "noise shared by the sites" in (tmp_path / "demo" / "report.html").read_text().lower()
    for site in result["sites"]:
        assert 2.5 < site["epsilon"] <= 3.0
    # Single runs vary by a hundredth; a step in the wrong direction, or without its scale, by tenths.
    federated = [site["auc_federated"] for site in result["sites"]]
    assert sum(federated) / 4 > 0.83
    assert result["auc_pooled_dp"] > 0.87


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_interrupted_demo_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    workdir = tmp_path / "demo"
    process = subprocess.Popen(
        [*COMMAND, "--workdir", str(workdir)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    deadline = time.monotonic() + 60
    while sum("site run" in line for line in processes_of(workdir)) < 4:
        assert process.poll() is None, process.communicate()[0].decode()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(process.pid, number)
    output = process.communicate(timeout=40)[0].decode()
    assert process.returncode == 130
    assert "Traceback" not in output
    time.sleep(0.5)
    assert processes_of(workdir) == []


@pytest.mark.slow
def test_killed_demo_leaves_no_process(tmp_path: Path) -> None:
    workdir = tmp_path / "demo"
    process = subprocess.Popen([*COMMAND, "--workdir", str(workdir)], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while sum("site run" in line for line in processes_of(workdir)) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.kill()
    process.wait()
    while processes_of(workdir):
        assert time.monotonic() < deadline, processes_of(workdir)
        time.sleep(0.2)


def test_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="--workdir"):
        prepare_folder(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_more_sites_are_disjoint_parts_of_the_hospitals() -> None:
    assert list(hospital_parts(4)) == ["cleveland", "hungary", "switzerland", "va-long-beach"]
    sources = hospital_parts(16)
    assert len(sources) == 16
    assert sources["cleveland-1"] == "builtin:cleveland/1of4"
    assert len(set(hospital_parts(18).values())) == 18
    with pytest.raises(UsageError):
        hospital_parts(1)
