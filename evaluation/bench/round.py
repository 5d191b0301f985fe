"""``cipherward bench round``: a round in real processes, with encryption and without, in the same run.

The task is a linear model of the wanted size on eight synthetic patients, so that training is next to nothing;
what is timed is from the plan record to the last model report: encrypt, upload, commit, sum, close, fetch,
verify, open, apply, report.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cipherward.crypto.study_file import StudyFile
from cipherward.crypto.suites.base import KeyLifetime
from cipherward.crypto.suites.registry import PACKAGES, suite
from cipherward.durable import write_file
from cipherward.evaluation.bench.records import Record
from cipherward.evaluation.demo.consortium import COORDINATOR, DemoConsortium, DemoSite
from cipherward.evaluation.demo.processes import Processes
from cipherward.evaluation.demo.study import RunningStudy
from cipherward.proto.v1.coordinator_pb2 import RoundStatus, StudyStatus
from cipherward.site_agent.training.client import Trainer

TASK = "bench-linear"
PLAIN = "plain"
_ENTRY = "cipherward.evaluation.bench.plain.entry"
_PACKAGE = "cipherward_bench_task"

_TASK_CODE = """\
from cipherward.site_agent.tasks.base import BinaryTask, Records, Split


class BenchTask(BinaryTask):
    name = "bench-linear"

    def model(self):
        from torch import nn

        return nn.Linear({inputs}, 1)

    def load(self, source, split):
        import torch

        count = 8
        features = torch.zeros(count, {inputs})
        features[:, 0] = torch.arange(count)
        labels = (torch.arange(count) % 2).float()
        return Records(features, labels, tuple(f"{{source}}-{{index}}" for index in range(count)))
"""


@contextmanager
def _installed_task(folder: Path, parameters: int) -> Iterator[None]:
    """The benchmark's task as an installed package that only processes started from here can see."""
    package, info = folder / _PACKAGE, folder / f"{_PACKAGE}-1.0.dist-info"
    package.mkdir(parents=True)
    info.mkdir()
    write_file(package / "__init__.py", _TASK_CODE.format(inputs=parameters - 1).encode())
    write_file(info / "METADATA", f"Metadata-Version: 2.1\nName: {_PACKAGE}\nVersion: 1.0\n".encode())
    write_file(info / "entry_points.txt", f"[cipherward.tasks]\n{TASK} = {_PACKAGE}:BenchTask\n".encode())
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), before]))
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _study(suite_name: str, sites: list[str], rounds: int) -> StudyFile:
    chosen = suite(suite_name)
    parameters = next(iter(chosen.parameter_sets.values()))
    shared = chosen.key_lifetime is KeyLifetime.STUDY
    return StudyFile.model_validate(
        {
            "study": {"name": f"bench-{suite_name}", "rounds": rounds, "coordinator": COORDINATOR},
            "task": {"name": TASK},
            "training": {
                "sampling_rate": 1.0, "steps": 1, "learning_rate": 0.1, "batch_divisor": 8.0, "dp_disabled": True,
            },
            "metrics": {"loss_bound": 2.0, "scale": 8.0},
            "suite": {
                "name": suite_name, "parameters": parameters.name, "bound": parameters.bound,
                "key_maker": sites[0] if shared else "",
            },
            "cohort": {"minimum": len(sites)},
            "deadlines": {"join_window": 300, "upload": 300, "verify": 300},
        }
    )  # fmt: skip


def _run_study(folder: Path, suite_name: str, sites: int, rounds: int) -> StudyStatus:
    names = [f"site-{number}" for number in range(1, sites + 1)]
    consortium = DemoConsortium(folder)
    for name in names:
        consortium.add_site(DemoSite(name, f"patients-of-{name}", 1.0, 1e-4), TASK, suite_name, dp=False)
    trainer = Trainer(folder / "trainer" / "socket", log=folder / "trainer.log")
    with Processes(folder / "logs", _ENTRY) as processes:
        try:
            trainer.start()
            consortium.sign_study(_study(suite_name, names, rounds), 0, trainer)
            study = RunningStudy(consortium, processes, names, _ENTRY)
            study.start(folder / "trainer" / "socket")
            return study.watch(lambda _: None, seconds=900)
        finally:
            trainer.close()


def _median(status: StudyStatus, pick: Callable[[RoundStatus], float]) -> float:
    """Over all rounds but the first, which warms up."""
    return statistics.median(pick(entry) for entry in list(status.history)[1:])


def run(parameters: int, sites: int, rounds: int, report: Callable[[Record], None]) -> None:
    """All suites, with no encryption as the baseline."""
    wanted = list(PACKAGES)
    PACKAGES[PLAIN] = "cipherward.evaluation.bench.plain"
    try:
        with (
            tempfile.TemporaryDirectory(prefix="cipherward-bench-") as folder,
            _installed_task(Path(folder) / "task", parameters),
        ):
            found = {name: _run_study(Path(folder) / name, name, sites, rounds) for name in [PLAIN, *wanted]}
    finally:
        del PACKAGES[PLAIN]
    figures: list[tuple[str, str, Callable[[RoundStatus], float]]] = [
        ("round", "s", lambda entry: entry.seconds_after_join),
        ("bytes_up", "B/param", lambda entry: entry.bytes_up / sites / parameters),
        ("bytes_down", "B/param", lambda entry: entry.bytes_down / sites / parameters),
    ]
    for name in wanted:
        label = f"{name}:{found[name].parameters}"
        for figure, unit, pick in figures:
            value, baseline = _median(found[name], pick), _median(found[PLAIN], pick)
            report(Record(figure, value, unit, label, parameters, sites, 1, "cpu", baseline))
