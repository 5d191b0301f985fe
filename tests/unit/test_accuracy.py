"""The grid runs end to end and goes on after kill -9; its sums are the suite's; its sites are the agents' sources."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from cipherward.cli.app import main
from cipherward.crypto.quorum.params import parameters
from cipherward.errors import LimitError, UsageError
from cipherward.evaluation.accuracy import constants, data, real_cell, report, tuning
from cipherward.evaluation.accuracy.constants import Arm
from cipherward.evaluation.accuracy.federation import Simulator
from cipherward.evaluation.accuracy.journal import read
from cipherward.evaluation.accuracy.partition import Partition, deal
from cipherward.evaluation.accuracy.statistics import paired_interval
from cipherward.evaluation.accuracy.studies import honest_sites
from cipherward.evaluation.accuracy.sums import Encryption, RealSums, SimulatedSums
from cipherward.site_agent.tasks.base import Split
from cipherward.site_agent.tasks.medmnist.extractor import VERSION
from cipherward.site_agent.tasks.medmnist.files import FEATURES

COUNTS = {"train": 240, "val": 40, "test": 100}


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clouds of unit vectors."""
    generator = np.random.default_rng(5)
    direction = generator.normal(size=FEATURES)
    arrays: dict[str, np.ndarray] = {"extractor": np.array(VERSION)}
    for part, count in COUNTS.items():
        labels = generator.integers(0, 2, count)
        values = generator.normal(size=(count, FEATURES)) + np.outer(labels - 0.5, direction) / 2
        arrays[f"{part}_features"] = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype("<f4")
        arrays[f"{part}_labels"] = labels
        arrays[f"{part}_patients"] = np.array([f"{part}-{number}" for number in range(count)])
    path = tmp_path_factory.mktemp("features") / "features.npz"
    np.savez(path, **arrays)
    return path


def grid(features: Path, out: Path, *extra: str) -> list[str]:
    return ["accuracy", "run", "--data", str(features), "--sites", "4", "--out", str(out), *extra]


def test_the_real_cell_takes_deals_that_every_policy_accepts(
    features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = data.load(features)
    largest = [
        max(len(site.train.patients) for site in prepared.sites(4, Partition.IID, seed))
        for seed in range(1, 9)
    ]
    most = sorted(largest)[4]
    monkeypatch.setattr(real_cell, "DELTA", 1 / (10 * most))
    taken = [seed for seed, patients in enumerate(largest, 1) if patients < most]
    assert 1 <= len(taken) < 8
    assert real_cell.seeds_taken(prepared, 4, Partition.IID, len(taken)) == taken
    monkeypatch.setattr(real_cell, "DELTA", 0.1)
    with pytest.raises(UsageError, match="refuses delta"):
        real_cell.seeds_taken(prepared, 4, Partition.IID, 1)


@pytest.mark.slow
def test_the_grid_end_to_end_and_again(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = ["--epsilon", "8", "--epsilon", "inf", "--split", "iid", "--seeds", "2", "--jobs", "1"]
    assert main(grid(features, tmp_path / "out", *wanted)) == 0
    results = read(tmp_path / "out")
    assert len(results.cells) == 2 * (4 + 3)  # dp-fedsgd and pooled-dp at 8, pooled at inf
    by_arm = {(one.cell.arm, one.cell.epsilon): one for one in results.cells}
    assert all(0 <= one.auc <= 1 for one in results.cells)
    assert by_arm[Arm.POOLED, math.inf].auc > 0.9
    assert len(by_arm[Arm.ALONE, 8.0].by_site) == 4
    for one in results.settings.constants:
        spent = (
            0.99 * one.epsilon < one.spent <= one.epsilon if one.noise_multiplier else math.isinf(one.spent)
        )
        assert spent, one
    rows = report.rows(results)
    assert [(row.partition, row.sites, row.epsilon) for row in rows] == [
        (Partition.IID, 4, 8.0), (Partition.IID, 4, math.inf),
    ]  # fmt: skip
    assert rows[0].gap is not None and rows[1].gap is None
    assert (tmp_path / "out" / "auc-iid.svg").read_bytes().startswith(b"<?xml")
    assert "| IID | 4 | 8 |" in (tmp_path / "out" / "table.md").read_text()
    json.loads((tmp_path / "out" / "results.json").read_text(), parse_constant=pytest.fail)

    capsys.readouterr()
    assert main(grid(features, tmp_path / "out", *wanted)) == 0
    assert "14 of 14 cells" in capsys.readouterr().out
    assert read(tmp_path / "out") == results
    real = [*wanted, "--encryption", "real"]
    assert main(grid(features, tmp_path / "out", *real)) != 0  # other results do not get into the same table
    assert "another study" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [
        ["--epsilon", "0"],
        ["--epsilon", "many"],
        ["--split", "fair"],
        ["--arms", "best"],
        ["--encryption", "some"],
    ],
)
def test_what_is_none_of_the_choices_is_refused(features: Path, tmp_path: Path, wrong: list[str]) -> None:
    assert main(grid(features, tmp_path, *wrong)) not in (0, 70)


@pytest.mark.slow
def test_kill_minus_nine_loses_no_finished_cell(features: Path, tmp_path: Path) -> None:
    """Nor leaves a worker behind, and the second run goes on from there."""
    arguments = grid(
        features, tmp_path, "--epsilon", "inf", "--seeds", "4", "--jobs", "2", "--encryption", "real"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "cipherward.cli.app", *arguments], stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "results.json").exists() or not read(tmp_path).cells:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    workers = children(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = read(tmp_path)
    assert 1 <= len(before.cells) < 20
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert main(arguments) == 0
    after = read(tmp_path)
    assert after.cells[: len(before.cells)] == before.cells
    assert len(after.cells) == len({one.cell for one in after.cells}) == 20


def children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(entry.parent.name))
    return found


@pytest.mark.parametrize(("name", "bound"), [("q16", 1.0), ("q32", 64.0)])
def test_simulated_sums_are_the_suites_own(name: str, bound: float) -> None:
    """On the same input both open to the rounded sum with a centred binomial error of each site, within the bound."""
    params, length = parameters(name, bound, 5), 6000
    generator = np.random.default_rng(1)
    vectors = [generator.uniform(-bound, bound, length).astype(np.float32) for _ in range(5)]
    exact = np.sum(vectors, axis=0, dtype=np.float64)
    units = sum(np.rint(vector.astype(np.float64) * params.scale) for vector in vectors)
    for sums in (SimulatedSums(params), RealSums(params, 4)):
        opened = sums.open(vectors)
        assert np.abs(opened - exact).max() <= params.error_bound(5)
        errors = opened * params.scale - units
        assert np.array_equal(errors, np.rint(errors))
        assert errors.var() == pytest.approx(5 * 16, rel=0.1)  # 5 sd of a sample variance of 6000
        assert abs(errors.mean()) < 0.6
        with pytest.raises(LimitError):
            sums.open([vectors[0] * np.float32(1.01)] * 5)


def test_the_paired_interval_is_students() -> None:
    generator = np.random.default_rng(2)
    first, second = generator.normal(size=7), generator.normal(size=7)
    expected = stats.ttest_rel(first, second).confidence_interval(0.95)
    found = paired_interval(first.tolist(), second.tolist())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    for wrong in ([1.0], [1.0, 2.0, 3.0]):
        with pytest.raises(UsageError):
            paired_interval(wrong, [1.0])


@pytest.mark.parametrize("partition", Partition)
def test_sites_are_the_agents_sources(features: Path, partition: Partition) -> None:
    """Who trains in the simulation is whom an agent with the source of that site would train on."""
    prepared = data.load(features)
    sites = prepared.sites(4, partition, 3)
    for site, (name, source) in zip(sites, prepared.sources(4, partition, 3).items(), strict=True):
        assert site.name == name
        own = prepared.task.load(source, Split.TRAIN)
        assert own.patient_ids == site.train.patient_ids
        assert own.features.equal(site.train.features) and own.labels.equal(site.train.labels)
    everyone = [patient for site in sites for patient in site.train.patient_ids]
    assert sorted(everyone) == sorted(prepared.parts["train"].patient_ids)
    assert all(site.train.patient_ids for site in sites)


def test_a_skewed_draw_that_leaves_a_site_empty_is_drawn_again() -> None:
    patients, labels = tuple(f"p{number}" for number in range(60)), np.arange(60) % 2
    draws = [deal(patients, labels, 12, Partition.LABEL_SKEW, seed) for seed in range(5)]
    assert any(draw >= 1000 for _, draw in draws)
    assert all(len(rows) for parts, _ in draws for rows in parts)
    with pytest.raises(UsageError, match="fewer sites"):
        deal(patients[:5], labels[:5], 12, Partition.IID, 0)


def test_noise_is_shared_by_those_who_are_honest() -> None:
    """h = k - c with all sites in every sum."""
    assert {sites: honest_sites(sites) for sites in (4, 8, 16, 32)} == {4: 3, 8: 5, 16: 11, 32: 21}


def test_of_constants_as_good_those_whose_noise_moves_the_model_least_are_chosen() -> None:
    tried = list(tuning.combinations(Arm.FEDAVG, 8.0))
    assert len(tried) == len(constants.RATES) * len(constants.CLIP_NORMS)
    products = [one.schedule.learning_rate * one.schedule.clip_norm for one in tried]
    quiet, loud = products.index(min(products)), products.index(max(products))
    aucs = [0.8] * len(tried)
    aucs[quiet], aucs[loud] = 0.9, 0.9 + 0.9 * tuning.ALIKE
    assert tuning.best(list(zip(tried, aucs, strict=True))) is tried[quiet]
    aucs[loud] = 0.9 + 1.1 * tuning.ALIKE
    assert tuning.best(list(zip(tried, aucs, strict=True))) is tried[loud]


def test_what_is_near_the_best_is_run_again_and_one_is_chosen(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = tuning.Bench(data.load(features), Simulator(Encryption.SIMULATED, tmp_path), 3)
    tuning.choose(bench, [Arm.ALONE], math.inf, seeds=1, more=1)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    first, again = lines[: len(constants.RATES)], lines[len(constants.RATES) : -1]
    assert [float(line[2]) for line in first] == list(constants.RATES)
    top = max(float(line[4]) for line in first)
    near = [line[2:4] for line in first if float(line[4]) >= top - tuning.NEAR]
    assert [line[2:4] for line in again] == (near if len(near) > 1 else [])
    assert all(line[5:] == ["of", "2"] for line in again)
    assert lines[-1][4] == "chosen" and lines[-1][2:4] in near
