"""The example task, installed by pip as a hospital would, meets the contract and trains in the real trainer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cipherward.errors import UsageError
from cipherward.site_agent.tasks import registry
from cipherward.site_agent.tasks.base import Split
from cipherward.site_agent.training import weights

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_task"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site-packages")
    source = tmp_path_factory.mktemp("source") / "own_task"  # setuptools writes beside the sources
    subprocess.run(["cp", "-r", EXAMPLE, source], check=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, "--no-index", "--no-build-isolation", "--target", folder, source], check=True)
    return folder


def test_it_meets_the_contract(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(installed))
    task = registry.find("breast-cancer")
    assert task.name == "breast-cancer"
    sites = [task.load(f"part:{k}of4", Split.ALL) for k in (1, 2, 3, 4)]
    assert sum(len(site.patients) for site in sites) == 569
    assert len({patient for site in sites for patient in site.patients}) == 569
    train, test = (task.load("part:1of4", split) for split in (Split.TRAIN, Split.TEST))
    assert sorted(train.patients + test.patients) == list(sites[0].patients)
    assert float(train.features.abs().max()) <= 1
    assert float(sum(site.labels.sum() for site in sites)) == 212  # malignant
    outputs = weights.build(task)(train.features)
    assert task.loss(outputs, train.labels).shape == train.labels.shape
    assert np.array_equal(weights.initial(task, 3), weights.initial(task, 3))
    assert not np.array_equal(weights.initial(task, 3), weights.initial(task, 4))
    with pytest.raises(UsageError, match="Use part:KofN"):
        task.load("all", Split.ALL)


def test_the_installed_digest_is_that_of_the_sources(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever signs the study computes it from the repository, each hospital from what pip installed."""
    monkeypatch.syspath_prepend(str(installed))
    before = registry.task_digest("breast-cancer")
    copy = installed / "breast_cancer_task" / "task.py"
    assert copy.read_bytes() == (EXAMPLE / "breast_cancer_task" / "task.py").read_bytes()
    (installed / "breast_cancer_task" / "extra.py").write_text("")
    assert registry.task_digest("breast-cancer") != before
    (installed / "breast_cancer_task" / "extra.py").unlink()


def test_it_trains_as_its_readme_says(installed: Path) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLE / "try_it.py"],
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "106 training patients, 97 parameters" in done.stdout
    before = float(done.stdout.split(" before")[0].split()[-1])
    after = float(done.stdout.split(" after")[0].split()[-1])
    assert after > max(before, 0.8)
