"""The coordinator's benchmark at tiny sizes: it measures real processes, and refuses a wrong sum."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cipherward.crypto.suites.registry import suite
from cipherward.errors import UsageError, VerificationError
from cipherward.evaluation.bench.coordinator.bare import bare_disk
from cipherward.evaluation.bench.coordinator.ingest import Material, check_sum, make_material
from cipherward.evaluation.bench.coordinator.run import run
from cipherward.evaluation.bench.coordinator.updates import stored_chunks, write_update
from cipherward.evaluation.bench.coordinator.world import percentiles
from cipherward.evaluation.bench.study_keys import add_all

FIELDS = {"figure", "value", "unit", "suite", "params", "sites", "threads", "device", "baseline"}


def bench(folder: Path, *arguments: str) -> tuple[dict[tuple[str, str], Any], str]:
    """Its records by figure and suite, and what it printed."""
    out = folder / "bench.json"
    command = [sys.executable, "-m", "cipherward.cli.app", "bench", "coordinator", "--json", str(out)]
    sizes = ["--parameters", "3000", "--clients", "2", "--repeats", "1"]
    done = subprocess.run([*command, *sizes, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    records = json.loads(out.read_text())
    assert all(set(record) == FIELDS for record in records)
    return {(record["figure"], record["suite"]): record for record in records}, done.stdout


@pytest.mark.slow
def test_every_figure(tmp_path: Path) -> None:
    records, printed = bench(tmp_path, "--sites", "4")
    quorum, shared = "quorum:q32", "shared-key:seal-4096-48"
    assert {figure for figure, _ in records} == {
        "ingest", "peak_memory", "round", "restart", "checking", "checking_down",
    }  # fmt: skip
    ingest = records["ingest", quorum]
    assert ingest["value"] > 0 and ingest["baseline"] > 0  # which is faster is the benchmark's to say
    assert 50 < records["peak_memory", quorum]["value"] < 400
    assert 0 < records["restart", shared]["value"] < 30
    assert {suite for figure, suite in records if figure == "round"} == {quorum, shared}
    # c + 1 of n parts of n updates of 4 bytes a parameter, and their proofs.
    assert 8.0 < records["checking_down", quorum]["value"] < 30
    assert printed.count("the sum is right") + printed.count("right sum") + printed.count("it is right") == 4
    assert re.search(r"Upload +4 calls +p50 +[\d.]+ ms +p95 +[\d.]+ ms +p99", printed)


@pytest.mark.slow
def test_ingest_in_the_shared_key_suite(tmp_path: Path) -> None:
    records, printed = bench(tmp_path, "--figure", "ingest", "--suite", "shared-key", "--sites", "3")
    assert set(records) == {(f, "shared-key:seal-4096-48") for f in ("ingest", "peak_memory")}
    assert "the sum is right" in printed


def test_an_unknown_figure_or_suite_is_refused() -> None:
    for figures, suites in ((["speed"], None), (["ingest"], ["plain"])):
        with pytest.raises(UsageError, match="there is no"):
            run(figures, suites, 3, 100, 1, 1, lambda _: None, lambda _: None)


@pytest.mark.parametrize("name", ["quorum", "shared-key"])
def test_a_wrong_sum_is_refused(tmp_path: Path, name: str) -> None:
    """A benchmark of wrong results would flatter."""
    sites = 6 if name == "quorum" else 3
    material: Material = make_material(tmp_path, name, 3000, sites)
    params = suite(name).parameters(next(iter(suite(name).parameter_sets)), None, sites)
    manifest = SimpleNamespace(parameter_count=3000)
    trust: Any = SimpleNamespace(params=params, sites=range(sites), manifest=manifest)
    uploads = [list(material.of(number).chunks()) for number in range(sites)]
    check_sum(trust, material, add_all(params, uploads, 3004))
    with pytest.raises(VerificationError):
        check_sum(trust, material, add_all(params, uploads[:-1], 3004))


def test_updates_in_files_are_what_was_written(tmp_path: Path) -> None:
    chunks = [np.random.default_rng(seed).bytes(5000) for seed in range(3)]
    update = write_update(tmp_path / "one", chunks, [bytes(9), bytes(8)])
    assert list(update.chunks()) == stored_chunks(update.path, 3) == chunks
    assert update.data_bytes == 15_017
    assert len(list(update.messages())) == 5


def test_the_bare_disk_leaves_nothing(tmp_path: Path) -> None:
    assert bare_disk(tmp_path / "disk", [[2**20, 2**20, 5], [7]], 2) > 0
    assert list(tmp_path.iterdir()) == []


def test_percentiles() -> None:
    assert percentiles([0.001 * n for n in range(1, 101)]).split()[1::3] == ["51.0", "96.0", "100.0"]
