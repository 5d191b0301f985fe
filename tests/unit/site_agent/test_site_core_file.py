"""The keys of a round are in memory only: an agent that crashes leaves no core file, however it was started."""

import subprocess
import sys

SCRIPT = """
import resource
from pathlib import Path
from cipherward.clock import SystemClock
from cipherward.errors import CipherwardError
from cipherward.site_agent.daemon.agent import Options, run
from cipherward.site_agent.daemon.logging import make_logger

try:
    options = Options(Path({folder!r}), "localhost:1", Path({folder!r}) / "none")
    run(options, SystemClock(), make_logger(json_lines=True))
except CipherwardError:
    print(resource.getrlimit(resource.RLIMIT_CORE))
"""


def test_an_agent_leaves_no_core_file(tmp_path):
    script = SCRIPT.format(folder=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip().endswith("(0, 0)"), done.stderr
