"""A log that cannot be written loses lines, and ends nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cipherward.lines import lasting
from cipherward.site_agent.daemon.logging import make_logger

COORDINATOR = """
import sys, structlog
from cipherward.coordinator.daemon.logs import configure_logs
configure_logs()
log = structlog.get_logger()
sys.stdin.readline()
for number in range(5000):
    log.info("a line", number=number, text="x" * 100)
print("went on", flush=True)
"""


def test_a_full_disk_under_the_log_and_a_closed_one():
    full = Path("/dev/full").open("w", buffering=1)  # noqa: SIM115  its end fails as well
    log = make_logger(json_lines=True, stream=full)
    for number in range(500):
        log.error("a line", number=number, text="x" * 100)
    lasting(full).flush()
    with pytest.raises(OSError, match="No space left"):
        full.close()
    log.error("and after it was closed")


def test_a_reader_that_is_gone():
    reading, writing = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", COORDINATOR],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=writing,
        text=True,
    ) as process:
        os.close(writing)
        os.close(reading)
        assert process.communicate("go\n", timeout=30)[0] == "went on\n"
