"""Processes whose disk fails when a test says so, and a consortium of real ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "kit"))

from io_injector import Faults, load  # noqa: E402

site = load("fault_site_fixtures", HERE.parent / "site" / "conftest.py")
made_consortium, shared_trainer = site.made_consortium, site.shared_trainer
make_consortium = site.make_consortium


@pytest.fixture(scope="session")
def fault_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``faults.c``, compiled."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("faults.c needs Linux and a C compiler")
    library = tmp_path_factory.mktemp("faults") / "faults.so"
    command = [
        compiler,
        "-shared",
        "-fPIC",
        "-O1",
        "-Wall",
        "-Werror",
        "-o",
        str(library),
        "faults.c",
        "-ldl",
    ]
    subprocess.run(command, cwd=HERE / "kit", check=True)
    return library


@pytest.fixture
def make_faults(tmp_path: Path, fault_library: Path) -> Iterator[Callable[[Path], Faults]]:
    """Faults below a folder, for processes started with their ``environment``."""
    made: list[Faults] = []

    def make(under: Path) -> Faults:
        made.append(Faults(tmp_path / f"control-{len(made)}", under, fault_library))
        return made[-1]

    yield make
    for faults in made:
        faults.disarm()


@pytest.fixture
def enumerated(tmp_path: Path, make_faults: Callable[[Path], Faults]) -> Callable[..., dict[str, int]]:
    """Runs one of the kit's programs to its end."""

    def run(program: str, stride: int, *steps: str) -> dict[str, int]:
        folder = tmp_path / "world"
        command = [sys.executable, str(HERE / "kit" / program), str(folder), str(stride), *steps]
        environment = {**os.environ, **make_faults(folder).environment}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
        counted: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
        return counted

    return run
