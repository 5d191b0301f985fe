"""A task with as many parameters as a test wants, installed where only this test's processes see it."""

import os
import sys
from contextlib import contextmanager

NAME = "fault-linear"
_PACKAGE = "fault_linear_task"
_CODE = """\
from cipherward.site_agent.tasks.base import BinaryTask, Records, Split


class FaultTask(BinaryTask):
    name = "fault-linear"

    def model(self):
        from torch import nn

        return nn.Linear({inputs}, 1)

    def load(self, source, split):
        import torch

        labels = (torch.arange(8) % 2).float()
        return Records(torch.zeros(8, {inputs}), labels, tuple(f"{{source}}-{{index}}" for index in range(8)))
"""


@contextmanager
def installed_task(folder, parameters):
    """For this process, and for those that it starts."""
    package, info = folder / _PACKAGE, folder / f"{_PACKAGE}-1.0.dist-info"
    package.mkdir(parents=True)
    info.mkdir()
    (package / "__init__.py").write_text(_CODE.format(inputs=parameters - 1))
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {_PACKAGE}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[cipherward.tasks]\n{NAME} = {_PACKAGE}:FaultTask\n")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), before]))
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before
