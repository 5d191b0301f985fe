"""The benchmarks measure what they say, and their unencrypted suite is out of reach for a real study."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cipherward.crypto.suites.registry import PACKAGES, suite
from cipherward.errors import UsageError, VerificationError
from cipherward.evaluation.bench import crypto, study_keys
from cipherward.evaluation.bench.memory import PeakMemory
from cipherward.evaluation.bench.records import Record

FIELDS = {"figure", "value", "unit", "suite", "params", "sites", "threads", "device", "baseline"}


def test_bench_crypto_writes_its_records(tmp_path: Path) -> None:
    out = tmp_path / "crypto.json"
    command = [sys.executable, "-m", "cipherward.cli.app", "bench", "crypto"]
    done = subprocess.run(
        [*command, "--parameters", "20000", "--sites", "3", "--json", str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    records = json.loads(out.read_text())
    assert all(set(record) == FIELDS for record in records)
    default = {r["figure"]: r for r in records if r["suite"] == "shared-key:seal-4096-48"}
    assert {"encrypt", "add", "decrypt", "bytes_up", "bytes_down", "key_bytes", "peak_memory"} <= set(default)
    assert 6.0 <= default["bytes_up"]["value"] <= 16.5
    quorum = {r["figure"]: r for r in records if r["suite"] == "quorum:q32"}
    assert {"encrypt", "add", "decrypt", "share", "open", "bytes_up", "key_bytes", "peak_memory"} <= set(
        quorum
    )
    assert {r["threads"] for r in records if r["figure"] == "encrypt" and r["suite"] == "quorum:q32"} == {
        1,
        2,
    }
    # 10 chunk elements and the zero element for 20,000 parameters, and all that three members send besides.
    key_material = 3 * (8192 + 1136) + 8192 + 16 + 3 * (32 + 1136)
    assert quorum["key_bytes"]["value"] == key_material
    assert quorum["bytes_up"]["value"] == (11 * 8192 + key_material) / 20_000
    assert default["encrypt"]["value"] > 0
    assert default["largest_error"]["value"] <= default["largest_error"]["baseline"]


def test_bench_refuses_a_wrong_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark of wrong results would flatter."""
    honest = study_keys.add_all

    def swapped(params: object, uploads: list[list[bytes]], length: int) -> list[bytes]:
        return honest(params, uploads[:-1], length)  # type: ignore[arg-type]

    monkeypatch.setattr(study_keys, "add_all", swapped)
    with pytest.raises(VerificationError, match="off by"):
        crypto.measure("shared-key", "seal-4096-48", 3000, 3, lambda _: None)


def test_peak_memory_sees_a_large_array() -> None:
    with PeakMemory(os.getpid()) as memory:
        block = np.ones(8_000_000)  # 64 MB
        deadline = time.monotonic() + 5
        while memory.extra < 50e6 and time.monotonic() < deadline:
            block += 1
    assert 50e6 < memory.extra < 400e6


@pytest.mark.slow
def test_bench_round_compares_with_no_encryption() -> None:
    from cipherward.evaluation.bench.round import run

    found: list[Record] = []
    run(5000, 3, 2, found.append)
    figures = {record.figure: record for record in found}
    assert set(figures) == {"round", "bytes_up", "bytes_down"}
    assert figures["bytes_up"].baseline is not None
    assert 4.0 < figures["bytes_up"].baseline < figures["bytes_up"].value
    assert "plain" not in PACKAGES


def test_the_unencrypted_suite_is_unknown_to_the_product() -> None:
    with pytest.raises(UsageError, match="no suite 'plain'"):
        suite("plain")
    tree = Path(__file__).parents[2]
    for root in ("crypto", "coordinator", "site_agent", "src"):
        named = [path for path in (tree / root).rglob("*.py") if "bench.plain" in path.read_text()]
        assert named == [], "only the benchmark may name the unencrypted suite"
